"""The report of a sweep: its runs grouped into cells, statistics, words, tables, pictures, one page. No torch."""
