package store

import (
	"maps"
	"slices"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// What tests outside of the package see of its inside.

type Operation struct{ Kind, Name, To string }

// OpenTapped opens a store whose operations on the disk go through tap.
func OpenTapped(cfg Config, log *zap.Logger, t func(op Operation, data *[]byte, off int64, do func() error) error) (*Store, error) {
	return open(cfg, log, func(op *operation, do func() error) error {
		return t(Operation{op.kind, op.name, op.to}, &op.data, op.off, do)
	})
}

// Kill ends the store as kill -9 does: nothing more is written.
func (s *Store) Kill() {
	s.mu.Lock()
	s.closed = true
	for _, b := range s.blobs {
		b.mu.Lock()
		b.endLocked(ErrClosed)
		if b.file != nil {
			_ = b.file.close()
		}
		b.mu.Unlock()
	}
	s.mu.Unlock()
	_ = s.vol.close()
	_ = s.flock.Unlock()
}

// Reserved is what counts against the limit, in bytes.
func (s *Store) Reserved() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// OnDisk lists the blobs of which the disk says that they are sealed.
func (s *Store) OnDisk() []blob.Digest {
	return s.which(func(b *Blob) bool { return b.marked || b.found })
}

// Durable lists those of them that no power cut may lose.
func (s *Store) Durable() []blob.Digest {
	return s.which(func(b *Blob) bool { return b.marked })
}

func (s *Store) which(is func(*Blob) bool) []blob.Digest {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.blobs))
	s.mu.Unlock()
	var on []blob.Digest
	for _, b := range all {
		b.disk.Lock()
		b.mu.Lock()
		if is(b) && b.sealed && b.err == nil {
			on = append(on, b.digest)
		}
		b.mu.Unlock()
		b.disk.Unlock()
	}
	return on
}

// Untap has the store do its operations as it does outside of tests. Nobody uses it now.
func (s *Store) Untap() { s.vol.tap = nil }

// FakeDisk has the store believe that its file system is as disk says.
func (s *Store) FakeDisk(disk func() (Disk, error)) { s.disk = disk }

// InMemory tells whether the blob keeps its links in memory and its file open.
func (b *Blob) InMemory() (chain, file bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.chain != nil, b.file != nil
}

const MaxHeader = maxHeader

var (
	ErrCorrupt = errCorrupt
	ErrVersion = errVersion
)

// Sidecar is what a sidecar says.
type Sidecar struct {
	Layout         blob.Layout
	Sealed, Pinned bool
	Held           *blob.Bitmap
	Chain          *blob.Chain

	Shared, Adopted bool
	Places          []blob.Place
}

func DecodeSidecar(d blob.Digest, p []byte) (*Sidecar, error) {
	m, err := decodeSidecar(d, p)
	if err != nil {
		return nil, err
	}
	return &Sidecar{m.layout, m.sealed, m.pinned, m.held, m.chain, m.shared, m.adopted, m.places}, nil
}

func (m *Sidecar) Encode(d blob.Digest) []byte {
	s := sidecar{header: header{digest: d, layout: m.Layout, sealed: m.Sealed, pinned: m.Pinned, shared: m.Shared, adopted: m.Adopted, places: m.Places}, held: m.Held, chain: m.Chain}
	return s.encode()
}

// Checksum is that of header and sidecar.
func Checksum(p []byte) uint32 { return checksum(p) }
