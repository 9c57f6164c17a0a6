package core

import (
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

var update = flag.Bool("update", false, "rewrite the decisions in testdata to what they are now")

// TestStories plays every testdata/*.txt: events at the left margin, and below
// each the decisions that must follow. DESIGN.md says how to write one.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(text))
			if got == string(text) {
				return
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("%s: decisions differ (go test -update rewrites them):\n%s", file, firstDifference(string(text), got))
		})
	}
}

func firstDifference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(a), len(b)) {
		at := func(lines []string) string {
			if i < len(lines) {
				return lines[i]
			}
			return "(end)"
		}
		if at(a) != at(b) {
			return fmt.Sprintf("line %d\n  want %s\n  got  %s", i+1, at(a), at(b))
		}
	}
	return "nowhere"
}

// story is one file while it is played.
type story struct {
	t      *testing.T
	cfg    Config
	s      *State
	blobs  map[string]*simBlob
	names  []string
	leases map[string]uint64
	labels map[uint64]string
}

func play(t *testing.T, text string) string {
	st := &story{t: t, blobs: map[string]*simBlob{}, leases: map[string]uint64{}, labels: map[uint64]string{}}
	var out strings.Builder
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, "\t") {
			continue // decisions are written anew
		}
		out.WriteString(line + "\n")
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		switch words[0] {
		case "config":
			st.configure(words[1:])
		case "blob":
			st.declare(words[1], words[2])
		default:
			if st.s == nil {
				st.s = New(st.cfg, 1)
			}
			now, e, err := ParseEvent(st.expand(words))
			if err != nil {
				t.Fatalf("line %d: %v", n+1, err)
			}
			for _, d := range st.s.Apply(now, e, nil) {
				out.WriteString("\t" + st.describe(&d) + "\n")
			}
			checkState(t, st.s)
		}
	}
	return out.String()
}

func (st *story) configure(words []string) {
	for _, word := range words {
		name, v, _ := strings.Cut(word, "=")
		f := reflect.ValueOf(&st.cfg).Elem().FieldByName(name)
		if !f.IsValid() {
			st.t.Fatalf("config has no field %s", name)
		}
		if d, err := time.ParseDuration(v); err == nil && f.Type() == reflect.TypeFor[Time]() {
			f.SetInt(int64(d))
		} else if i, err := strconv.ParseInt(v, 10, 64); err == nil {
			f.SetInt(i)
		} else {
			st.t.Fatalf("config %s: %v", word, err)
		}
	}
}

// declare gives a blob of so many bytes, or "3p" pieces of the least length, a
// name.
func (st *story) declare(name, size string) {
	bytes, err := strconv.ParseInt(strings.TrimSuffix(size, "p"), 10, 64)
	if err != nil {
		st.t.Fatal(err)
	}
	if strings.HasSuffix(size, "p") {
		bytes *= blob.MinPieceLength
	}
	l, err := blob.NewLayout(bytes)
	if err != nil {
		st.t.Fatal(err)
	}
	st.blobs[name] = &simBlob{digest: blob.FromBytes([]byte(name)), layout: l}
	st.names = append(st.names, name)
}

// expand turns a story's line into an event's: durations, names of blobs and
// leases, and links=1+2 for made-up links 1 and 2 (links=1+2x for other ones).
func (st *story) expand(words []string) string {
	d, err := time.ParseDuration(words[0])
	if err != nil {
		st.t.Fatal(err)
	}
	words[0] = strconv.FormatInt(int64(d), 10)
	var b *simBlob
	for i, word := range words[1:] {
		name, v, _ := strings.Cut(word, "=")
		switch {
		case st.blobs[word] != nil && i == 2:
			b = st.blobs[word]
			word = string(b.digest)
			if kind := words[1]; kind == "want" || kind == "have" {
				word += fmt.Sprintf(" size=%d", b.layout.Size())
			}
		case name == "links":
			word = st.links(b, v)
		case name == "lease":
			id, ok := st.leases[v]
			if !ok {
				id, _ = strconv.ParseUint(v, 10, 64)
			}
			word = fmt.Sprintf("lease=%d", id)
		case name == "retry_after" || name == "time":
			d, err := time.ParseDuration(v)
			if err != nil {
				st.t.Fatal(err)
			}
			word = fmt.Sprintf("%s=%d", name, int64(d))
		case name == "from": // an origin, short
			word = "kind=blob registry=" + strings.Replace(v, "/", " repository=", 1)
		}
		words[i+1] = word
	}
	return strings.Join(words, " ")
}

func (st *story) links(b *simBlob, v string) string {
	version := 0
	if strings.HasSuffix(v, "x") {
		v, version = strings.TrimSuffix(v, "x"), 1
	}
	runs, err := parseRuns(v)
	if err != nil || b == nil {
		st.t.Fatalf("links=%s: %v", v, err)
	}
	var links []byte
	for i := runs[0].First; i < runs[0].End(); i++ {
		links = append(links, b.link(version, i)...)
	}
	return fmt.Sprintf("first_link=%d links=%s", runs[0].First, base64.StdEncoding.EncodeToString(links))
}

var (
	leaseID  = regexp.MustCompile(`lease=(\d+)`)
	deadline = regexp.MustCompile(`deadline=(\d+)`)
	origin   = regexp.MustCompile(`kind=blob registry=(\S+) repository=(\S+)`)
)

// describe writes a decision as stories do.
func (st *story) describe(d *Decision) string {
	line := string(AppendDecision(nil, d))
	for _, name := range st.names {
		line = strings.ReplaceAll(line, string(st.blobs[name].digest), name)
	}
	line = leaseID.ReplaceAllStringFunc(line, func(m string) string {
		id, _ := strconv.ParseUint(m[len("lease="):], 10, 64)
		label, ok := st.labels[id]
		if !ok {
			label = fmt.Sprintf("L%d", len(st.labels)+1)
			st.labels[id], st.leases[label] = label, id
		}
		return "lease=" + label
	})
	line = deadline.ReplaceAllStringFunc(line, func(m string) string {
		ns, _ := strconv.ParseInt(m[len("deadline="):], 10, 64)
		return "deadline=" + time.Duration(ns).Round(time.Millisecond).String()
	})
	return origin.ReplaceAllString(line, "from=$1/$2")
}
