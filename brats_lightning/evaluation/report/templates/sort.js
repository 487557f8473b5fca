// Click a heading to sort by its column; cells without a number stay at the end.
document.querySelectorAll('table.sortable').forEach(table => {
 const headings = table.tHead.rows[table.tHead.rows.length - 1].cells;
 [...headings].forEach((th, i) => {
  th.tabIndex = 0;
  const sort = () => {
    const down = th.getAttribute('aria-sort') !== 'descending', body = table.tBodies[0];
    [...headings].forEach(other => other.removeAttribute('aria-sort'));
    th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const key = row => { const v = row.cells[i].dataset.value; return v === undefined ? row.cells[i].innerText : v; };
    [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === '' || y === '') return (x === '') - (y === '');
      return (isNaN(x) || isNaN(y) ? String(x).localeCompare(y) : x - y) * (down ? -1 : 1);
    }).forEach(row => body.append(row));
  };
  th.addEventListener('click', sort);
  th.addEventListener('keydown', event => { if (event.key === 'Enter') sort(); });
 });
});
