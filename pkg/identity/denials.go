package identity

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// heardFile, in a node's directory, holds what schedulers have said of denied nodes: a
// statement in a line, as "<peer ID> <denied or allowed> <when>".
const heardFile = "denied.txt"

// maxHeardFile is far above the size of a file with MaxStatements.
const maxHeardFile = 1 << 20

// denials is what a node knows of denied nodes. Schedulers tell it (Hear); it is kept on
// disk, so that a denial holds when the node starts while no scheduler answers. Safe for
// concurrent use.
type denials struct {
	path string
	log  *zap.Logger

	changed chan struct{} // capacity 1: the file is behind

	mu   sync.RWMutex
	said map[string]Statement
}

// loadDenials reads what an earlier process of the node kept. Of a file that cannot be read
// the log tells; what it said comes again from a scheduler.
func loadDenials(dir string, log *zap.Logger) *denials {
	d := &denials{path: filepath.Join(dir, heardFile), log: log, said: map[string]Statement{}, changed: make(chan struct{}, 1)}
	kept, err := readHeard(d.path)
	if err != nil {
		log.Error("what was heard of denied nodes cannot be read; a scheduler tells it again", zap.Error(err))
	}
	d.take(kept)
	return d
}

func readHeard(path string) ([]Statement, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxHeardFile {
		return nil, fmt.Errorf("%s has %d bytes, more than it can have", path, info.Size())
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []Statement
	for lines := bufio.NewScanner(bytes.NewReader(content)); lines.Scan(); {
		s, ok := parseHeard(lines.Text())
		if !ok {
			return nil, fmt.Errorf("%s: a line is no statement: %q", path, clip(lines.Text()))
		}
		out = append(out, s)
	}
	return out, nil
}

func parseHeard(line string) (Statement, bool) {
	id, rest, _ := strings.Cut(line, " ")
	word, at, _ := strings.Cut(rest, " ")
	when, err := time.Parse(time.RFC3339Nano, at)
	s := Statement{ID: id, Denied: word == wordDenied, At: when.UTC()}
	return s, err == nil && (s.Denied || word == wordAllowed) && s.Check() == nil
}

// take takes statements in and returns those that were news. Of more than MaxStatements the
// oldest give way, those first that allow.
func (d *denials) take(statements []Statement) (news []Statement) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range statements {
		known, ok := d.said[s.ID]
		if s.Check() != nil || ok && !s.Replaces(known) {
			continue
		}
		d.said[s.ID] = s
		news = append(news, s)
	}
	for len(d.said) > MaxStatements {
		delete(d.said, slices.MinFunc(slices.Collect(maps.Values(d.said)), func(a, b Statement) int {
			if a.Denied != b.Denied {
				if b.Denied {
					return -1
				}
				return 1
			}
			return a.At.Compare(b.At)
		}).ID)
	}
	return news
}

// denied reports whether the node with this peer ID is denied.
func (d *denials) denied(id string) bool {
	if d == nil {
		return false
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.said[id].Denied
}

// errDenied: the other end was denied, and may be told so.
var errDenied = errors.New("it was denied by 'scheduler node deny'")

// check returns nil unless p is denied.
func (d *denials) check(p Peer) error {
	if d.denied(p.ID) {
		return refuse(reasonDenied, "%s: %w", p.ID, errDenied)
	}
	return nil
}

// all lists the statements by ID.
func (d *denials) all() []Statement {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.SortedFunc(maps.Values(d.said), func(a, b Statement) int { return cmp.Compare(a.ID, b.ID) })
}

// save puts what is known on disk.
func (d *denials) save() error {
	var content []byte
	for _, s := range d.all() {
		word := wordAllowed
		if s.Denied {
			word = wordDenied
		}
		content = fmt.Appendf(content, "%s %s %s\n", s.ID, word, s.At.Format(time.RFC3339Nano))
	}
	return replaceFile(d.path, content)
}

// Hear takes in what a scheduler says of nodes. Whoever is denied by it is cut off before
// it returns: connections to servers of this identity end, and new ones are refused, also
// those that this identity opens. Run keeps it on disk. The caller vouches that the
// statements come from a scheduler.
func (id *Identity) Hear(statements []Statement) {
	news := id.denials.take(statements)
	if len(news) == 0 {
		return
	}
	cut := id.Disconnect(id.denials.denied)
	for _, s := range news {
		id.log.Info("heard of a node from a scheduler", zap.String("node", s.ID), zap.Bool("denied", s.Denied), zap.Time("said", s.At))
	}
	if cut > 0 {
		id.log.Warn("ended the connections of denied nodes", zap.Int("connections", cut))
	}
	select {
	case id.denials.changed <- struct{}{}:
	default:
	}
}

// keepHeard saves what was heard whenever that has changed, until ctx ends.
func (id *Identity) keepHeard(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-id.denials.changed:
		}
		if err := id.denials.save(); err != nil {
			id.log.Error("what was heard of denied nodes cannot be kept; after a restart it is unknown until a scheduler tells it again", zap.Error(err))
		}
	}
}

// Heard is HashStatements of what this identity has heard.
func (id *Identity) Heard() []byte { return HashStatements(id.denials.all()) }

// HashStatements tells lists of statements, sorted by ID, apart: nil is none.
func HashStatements(statements []Statement) []byte {
	if len(statements) == 0 {
		return nil
	}
	h := sha256.New()
	for _, s := range statements {
		_, _ = fmt.Fprintf(h, "%s %t %d\n", s.ID, s.Denied, s.At.UnixNano()) // never fails (hash.Hash)
	}
	return h.Sum(nil)
}

// StatementsOf reads statements off the wire. What is none is left to Check.
func StatementsOf(wire []*damselflyv1.Statement) []Statement {
	out := make([]Statement, 0, len(wire))
	for _, s := range wire {
		out = append(out, Statement{ID: s.GetNode(), Denied: s.GetDenied(), At: time.Unix(0, s.GetAt()).UTC()})
	}
	return out
}

// WireStatements is the other way round.
func WireStatements(statements []Statement) []*damselflyv1.Statement {
	out := make([]*damselflyv1.Statement, 0, len(statements))
	for _, s := range statements {
		out = append(out, &damselflyv1.Statement{Node: s.ID, Denied: s.Denied, At: s.At.UnixNano()})
	}
	return out
}
