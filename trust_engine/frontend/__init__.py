"""What both doors show and share, and no host knows."""
