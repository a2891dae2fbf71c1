"""Results for people: tables, pages and drawn images."""
