// Tables: click a heading to sort by its column, cells without a number last; type to filter rows.
document.querySelectorAll('table.sortable').forEach(table => {
  const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells], body = table.tBodies[0];
  headings.forEach((th, i) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...th.childNodes);
    th.append(button);
    button.addEventListener('click', () => {
      const down = th.getAttribute('aria-sort') !== 'descending';
      headings.forEach(other => other.removeAttribute('aria-sort'));
      th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const key = row => row.cells[i].dataset.value ?? row.cells[i].innerText;
      [...body.rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === '' || y === '') return (x === '') - (y === '');
        return (isNaN(x) || isNaN(y) ? String(x).localeCompare(y) : x - y) * (down ? -1 : 1);
      }).forEach(row => body.append(row));
    });
  });
  const filter = table.closest('.scroll').previousElementSibling;
  if (!filter?.matches('.filter')) return;
  filter.querySelector('input').addEventListener('input', event => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of body.rows) {
      const line = row.textContent.toLowerCase();
      row.hidden = !words.every(word => line.includes(word));
      shown += !row.hidden;
    }
    filter.querySelector('output').textContent = `${shown} of ${body.rows.length} rows`;
  });
});
