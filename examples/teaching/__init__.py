"""How the reader of requests is taught; needed only to teach it anew."""
