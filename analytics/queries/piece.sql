SELECT * FROM {table} WHERE window_start >= ${start} AND window_start < ${end}
