"""The parts of the report page: what each one shows, as plain values that its template renders."""
