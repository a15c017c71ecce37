"""Small applications whose traffic `sample_data.capture` records."""
