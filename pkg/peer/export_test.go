package peer

import "time"

// SetPatience shortens the wait for readers that take nothing.
func (s *Server) SetPatience(d time.Duration) { s.patience = d }
