"""What an audit measures without attacking."""
