package main

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	"github.com/damselfly-p2p/damselfly/dfget/fetch"
	"github.com/damselfly-p2p/damselfly/dfget/partial"
)

// stdoutPath as -O means standard output.
const stdoutPath = "-"

// target is where get puts the bytes.
type target interface {
	fetch.Sink
	// Commit lets the bytes be seen, all of which are proven.
	Commit(perm fs.FileMode) error
	// Discard drops them.
	Discard() error
	// Close keeps them for a later run where that is possible. After Commit or
	// Discard it does nothing.
	Close() error
}

// file is a partial file with the directory that it is in.
type file struct {
	*partial.File
	dir *os.Root
}

func (f *file) Close() error { return errors.Join(f.File.Close(), f.dir.Close()) }

// stdout is standard output as a target. It cannot take bytes back, so it holds
// the last ones until they are proven: whoever reads it never sees the end of
// wrong bytes.
type stdout struct {
	w       io.Writer
	pending []byte
	wrote   bool
}

func (s *stdout) Resume(hash.Hash) (int64, error) { return 0, nil }

func (s *stdout) Write(b []byte) (int, error) {
	if err := s.flush(); err != nil {
		return 0, err
	}
	s.pending = append(s.pending, b...)
	return len(b), nil
}

func (s *stdout) flush() error {
	if len(s.pending) == 0 {
		return nil
	}
	s.wrote = true
	if _, err := s.w.Write(s.pending); err != nil {
		return fmt.Errorf("write standard output: %w", err)
	}
	s.pending = s.pending[:0]
	return nil
}

func (s *stdout) Reset() error {
	if s.wrote {
		return errors.New("standard output cannot be taken back; write to a file by -O PATH")
	}
	s.pending = nil
	return nil
}

func (s *stdout) Commit(fs.FileMode) error { return s.flush() }

func (s *stdout) Discard() error {
	s.pending = nil
	return nil
}

func (s *stdout) Close() error { return s.Discard() }
