package identity

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// deniedDir holds one file for each peer ID that was ever denied: its newest
	// statement.
	deniedDir = "denied"
	// MaxStatements is how many nodes a CA keeps statements of.
	MaxStatements = 4096
	// maxStatementFile is far above the size of a statement's file.
	maxStatementFile = 256

	wordDenied  = "denied"
	wordAllowed = "allowed"
)

// Statement is what was last said of a node: that it is denied, or that it is
// allowed again. Of two statements of a node the newer one holds; of two of the same
// time the one that denies.
type Statement struct {
	// ID is the node's peer ID.
	ID     string
	Denied bool
	// At is when it was said, to the nanosecond and of this century or the next.
	At time.Time
}

// Check says what is wrong with a statement that came from elsewhere.
func (s Statement) Check() error {
	if err := CheckID(s.ID); err != nil {
		return fmt.Errorf("statement of %q: %w", clip(s.ID), err)
	}
	if y := s.At.UTC().Year(); y < 2000 || y >= 2200 {
		return fmt.Errorf("statement of %s is of the year %d", s.ID, y)
	}
	return nil
}

// Replaces tells whether s holds and not other, a statement of the same node.
func (s Statement) Replaces(other Statement) bool {
	if c := s.At.Compare(other.At); c != 0 {
		return c > 0
	}
	return s.Denied && !other.Denied
}

// Deny stops the node with this peer ID from joining and from renewing its
// certificate, from now on and in every scheduler that uses this directory or
// gossips with one that does. What it holds already runs out within 24 hours; Denied
// lets a scheduler refuse it at once. Denying twice is no error.
func (ca *CA) Deny(id string) error {
	if err := ca.say(id, true); err != nil {
		return fmt.Errorf("deny node: %w", err)
	}
	return nil
}

// Allow takes Deny back. It is no error when the node was not denied here: it may
// have been where this directory does not reach yet.
func (ca *CA) Allow(id string) error {
	if err := ca.say(id, false); err != nil {
		return fmt.Errorf("allow node: %w", err)
	}
	return nil
}

// say makes a statement that is newer than all that are known of the node.
func (ca *CA) say(id string, denied bool) error {
	path, err := ca.deniedPath(id)
	if err != nil {
		return err
	}
	return withLock(filepath.Dir(path), func() error {
		known, ok, err := readStatement(path)
		if err != nil || ok && known.Denied && denied {
			return err
		}
		s := Statement{ID: id, Denied: denied, At: time.Now().Round(0).UTC()}
		if ok && !s.At.After(known.At) {
			s.At = known.At.Add(1)
		}
		if !ok {
			if room, err := (&room{dir: filepath.Dir(path)}).take(s); err != nil || !room {
				return err
			}
		}
		return s.write(path)
	})
}

// Accept takes in statements from elsewhere, and returns those that were news. Those
// that Check refuses are left out, and so are new ones when MaxStatements are
// kept; err says so.
func (ca *CA) Accept(statements []Statement) (news []Statement, err error) {
	dir := filepath.Join(ca.dir, deniedDir)
	err = withLock(dir, func() error {
		var errs []error
		left := &room{dir: dir}
		for _, s := range statements {
			if err := s.Check(); err != nil {
				errs = append(errs, err)
				continue
			}
			path := filepath.Join(dir, s.ID)
			known, ok, err := readStatement(path)
			if err == nil && ok && !s.Replaces(known) {
				continue
			}
			fits := true
			if err == nil && !ok {
				fits, err = left.take(s)
			}
			if err == nil && fits {
				err = s.write(path)
			}
			if err != nil {
				errs = append(errs, err)
				break
			}
			if !fits {
				continue
			}
			news = append(news, s)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		err = fmt.Errorf("take in denied nodes: %w", err)
	}
	return news, err
}

// room is what is left for statements in a directory. Who has it holds the lock.
type room struct {
	dir     string
	counted bool
	used    int
}

// take makes room for a statement of a node that has none; false when it is not
// worth it. What allows a node changes nothing once everybody has heard it: the
// oldest of those gives way.
func (r *room) take(s Statement) (bool, error) {
	if !r.counted {
		names, err := statementNames(r.dir)
		if err != nil {
			return false, err
		}
		r.counted, r.used = true, len(names)
	}
	if r.used < MaxStatements {
		r.used++
		return true, nil
	}
	known, err := readStatements(r.dir)
	if err != nil {
		return false, err
	}
	known = slices.DeleteFunc(known, func(s Statement) bool { return s.Denied })
	if len(known) == 0 {
		if !s.Denied {
			return false, nil
		}
		return false, fmt.Errorf("%d nodes are denied already, and no more can be: allow some that are gone for good", MaxStatements)
	}
	oldest := slices.MinFunc(known, func(a, b Statement) int { return a.At.Compare(b.At) })
	if !s.Denied && s.At.Before(oldest.At) {
		return false, nil
	}
	return true, os.Remove(filepath.Join(r.dir, oldest.ID))
}

// Denied says whether the node with this peer ID is denied. A directory that
// cannot be read is an error, to be taken for yes.
func (ca *CA) Denied(id string) (bool, error) {
	path, err := ca.deniedPath(id)
	if err != nil {
		return true, fmt.Errorf("look up denied node: %w", err)
	}
	s, ok, err := readStatement(path)
	if err != nil {
		return true, fmt.Errorf("look up denied node: %w", err)
	}
	return ok && s.Denied, nil
}

// DeniedIDs lists the denied peer IDs in order.
func (ca *CA) DeniedIDs() ([]string, error) {
	statements, err := ca.Statements()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, s := range statements {
		if s.Denied {
			ids = append(ids, s.ID)
		}
	}
	return ids, nil
}

// Statements lists what is kept of nodes that were ever denied, by ID.
func (ca *CA) Statements() ([]Statement, error) {
	out, err := readStatements(filepath.Join(ca.dir, deniedDir))
	if err != nil {
		return nil, fmt.Errorf("list denied nodes: %w", err)
	}
	return out, nil
}

func statementNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if CheckID(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func readStatements(dir string) ([]Statement, error) {
	names, err := statementNames(dir)
	if err != nil {
		return nil, err
	}
	out := make([]Statement, 0, len(names))
	for _, name := range names {
		s, ok, err := readStatement(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Statement) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// StatementsChanged is when the statements were last changed by any process: what
// Statements returned after that time holds still. It costs one look at the
// directory.
func (ca *CA) StatementsChanged() (time.Time, error) {
	info, err := os.Stat(filepath.Join(ca.dir, deniedDir))
	if err != nil {
		return time.Time{}, fmt.Errorf("look at denied nodes: %w", err)
	}
	return info.ModTime(), nil
}

func (ca *CA) deniedPath(id string) (string, error) {
	if err := CheckID(id); err != nil {
		return "", fmt.Errorf("%q is not the peer ID of a node: %w", clip(id), err)
	}
	return filepath.Join(ca.dir, deniedDir, id), nil
}

func (s Statement) write(path string) error {
	word := wordAllowed
	if s.Denied {
		word = wordDenied
	}
	return replaceFile(path, []byte(word+" "+s.At.UTC().Format(time.RFC3339Nano)+"\n"))
}

// readStatement reads a node's statement; ok is false when there is none. A file
// that does not say otherwise denies, as of its own time: an operator may have made
// it by hand.
func readStatement(path string) (s Statement, ok bool, err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Statement{}, false, nil
	}
	if err != nil {
		return Statement{}, false, err
	}
	s = Statement{ID: filepath.Base(path), Denied: true, At: info.ModTime().UTC()}
	if !info.Mode().IsRegular() || info.Size() > maxStatementFile {
		return s, true, nil
	}
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Statement{}, false, nil
	}
	if err != nil {
		return Statement{}, false, err
	}
	word, at, _ := strings.Cut(strings.TrimSpace(string(content)), " ")
	said := Statement{ID: s.ID, Denied: word != wordAllowed}
	if said.At, err = time.Parse(time.RFC3339Nano, at); err != nil || said.Check() != nil {
		return s, true, nil
	}
	said.At = said.At.UTC()
	return said, true, nil
}
