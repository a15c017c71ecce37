CREATE TABLE sampled_spans AS FROM spans WITH NO DATA
