"""The formats of data that `load_data` takes, beside what test_data has of all of them."""
