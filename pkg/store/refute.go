package store

// Refute drops what the origin's own bytes contradict: every link after link i, and piece
// i and all after it. The links before stand, as promises do, until the digest is reached
// or not. Readers go on that have handed out nothing of what is dropped; others end with
// ErrReset. Of a sealed blob nothing is dropped. Put, Extend and AddLinks may go on at
// once. See Reset.
func (b *Blob) Refute(i int) error {
	if err := b.hold(); err != nil {
		return err
	}
	defer b.Release()
	if err := b.load(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.resetting && b.err == nil {
		b.change.Wait()
	}
	b.resetting = true
	for b.writers > 0 {
		b.change.Wait()
	}
	b.resetting = false
	b.change.Broadcast()
	if err := b.err; err != nil || b.sealed {
		return err
	}
	b.gen++
	b.resets++
	b.stands = b.layout.Offset(i)
	for p := i; p < b.layout.Pieces(); p++ {
		b.held.Clear(p)
		if b.claims != nil {
			b.claims.Clear(p)
		}
	}
	b.chain.Cut(i + 1)
	b.dirty = true
	b.wakeAllLocked()
	return nil
}
