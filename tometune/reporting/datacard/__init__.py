"""The data card of a mix, and the page of the difference of two: HTML of one file each, and Markdown."""
