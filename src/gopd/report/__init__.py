"""`gopd report`: what runs left behind, as one HTML file that needs nothing else. No torch here."""
