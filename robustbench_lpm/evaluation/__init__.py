"""Run attacks and grade them: noise control, query counting, work units. Only this room grades."""
