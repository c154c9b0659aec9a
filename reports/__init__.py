"""Records to tables, figures and offline HTML pages; reads stores and runs nothing."""
