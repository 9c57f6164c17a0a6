package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// found is what a directory holds under one blob's name.
type found struct {
	digest                  blob.Digest
	whole, part, meta, temp bool
}

// scan takes in what an earlier run left. No file can make it fail: what is of
// no use is deleted when it is ours, and left alone when it is not.
func (s *Store) scan() {
	defer func() { s.found = nil }()
	var blobs []*Blob
	for _, algorithm := range []string{"sha256", "sha512"} {
		for _, shard := range s.names(algorithm) {
			dir := path.Join(algorithm, shard)
			if len(shard) != 2 {
				continue
			}
			for _, f := range group(algorithm, shard, s.names(dir)) {
				b, err := s.adopt(f)
				if err != nil {
					s.log.Warn("leaving a blob alone that cannot be used", zap.Stringer("digest", f.digest), zap.Error(err))
				}
				if b != nil {
					blobs = append(blobs, b)
				}
			}
		}
	}
	slices.SortStableFunc(blobs, func(a, b *Blob) int { return a.lastUse.Compare(b.lastUse) })
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range blobs {
		used := b.lastUse
		s.addLocked(b)
		b.lastUse = used
	}
}

// names lists a directory. One that cannot be read has none.
func (s *Store) names(dir string) []string {
	entries, err := s.vol.list(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("cannot read a directory of the store", zap.String("dir", dir), zap.Error(err))
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}

// group sorts the names in one directory by blob. Names that the store does not
// give are passed over.
func group(algorithm, shard string, names []string) []*found {
	var all []*found
	byHex := map[string]*found{}
	for _, name := range names {
		hex, suffix, dotted := strings.Cut(name, ".")
		if dotted {
			suffix = "." + suffix
		}
		d, err := blob.ParseDigest(algorithm + ":" + hex)
		if err != nil || hex[:2] != shard {
			continue
		}
		f := byHex[hex]
		if f == nil {
			f = &found{digest: d}
		}
		switch suffix {
		case "":
			f.whole = true
		case partSuffix:
			f.part = true
		case metaSuffix:
			f.meta = true
		case tempSuffix:
			f.temp = true
		default:
			continue
		}
		if byHex[hex] == nil {
			byHex[hex] = f
			all = append(all, f)
		}
	}
	return all
}

// adopt makes a blob of what was found. It returns nil when there is none: with
// an error when the files were left alone.
func (s *Store) adopt(f *found) (*Blob, error) {
	b := newBlob(s, f.digest, blob.Layout{})
	h, err := s.readHeader(b)
	switch {
	case err == nil && (f.whole || f.part):
	case err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, errCorrupt):
		s.log.Warn("deleting what is left of a blob that cannot be used", zap.Stringer("digest", f.digest), zap.Error(err))
		return nil, b.deleteFiles()
	default: // another version, or the disk does not answer
		return nil, err
	}
	// Data under the name of a part is checked piece by piece, whatever the
	// sidecar says. Where there is both, the other is a leftover.
	b.layout, b.pinned, b.named = h.layout, h.pinned, !f.part
	info, err := s.vol.stat(b.dataPath())
	if err != nil {
		return nil, err
	}
	meta, err := s.vol.stat(b.metaPath())
	if err != nil {
		return nil, err
	}
	b.lastUse = meta.ModTime()
	sealed := b.named && h.sealed
	if !info.Mode().IsRegular() || sealed && info.Size() != h.layout.Size() {
		s.log.Warn("deleting a sealed blob whose data has not its size", zap.Stringer("digest", f.digest),
			zap.Int64("size", h.layout.Size()), zap.Int64("found", info.Size()))
		return nil, b.deleteFiles()
	}
	if f.whole && f.part {
		if err := s.vol.remove(b.wholePath()); err != nil {
			return nil, err
		}
	}
	if b.named && !sealed { // pieces are not to be written under a name that may be trusted later
		if err := s.vol.rename(b.wholePath(), b.partPath()); err != nil {
			return nil, err
		}
		b.named = false
	}
	b.sealed, b.synced, b.found, b.loaded = sealed, sealed, sealed, sealed
	b.inPart = !sealed // nothing says that its room was set aside
	b.changed = stampOf(info)
	b.places = h.places
	b.frozen = h.shared && b.named
	if b.frozen { // others have the file, and may have written to it meanwhile
		if s.found == nil {
			s.found = s.readMarks()
		}
		b.changed = unproven()
		if known, ok := s.found[f.digest]; ok {
			b.changed = known
		}
	}
	b.adopted, b.free = h.adopted && b.frozen, b.frozen
	return b, nil
}

func (s *Store) readHeader(b *Blob) (header, error) {
	data, err := s.vol.readFile(b.metaPath(), maxHeader)
	if err != nil {
		return header{}, fmt.Errorf("read sidecar: %w", err)
	}
	h, _, err := decodeHeader(b.digest, data)
	return h, err
}
