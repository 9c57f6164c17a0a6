package core

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// nonsense draws any event, most of them not fitting what went before.
func nonsense(t *rapid.T, leased []uint64) Event {
	node := rapid.SampledFrom([]string{"n1", "n2", "n3", "s1", ""}).Draw(t, "node")
	d := blob.FromBytes([]byte(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "blob")))
	size := rapid.OneOf(rapid.SampledFrom([]int64{3 * testPiece, testPiece, 70*testPiece + 1}), rapid.Int64Range(-1, 80*testPiece)).Draw(t, "size")
	number := rapid.OneOf(rapid.IntRange(-2, 80), rapid.SampledFrom([]int{math.MaxInt, math.MinInt, 1 << 40}))
	runs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) blob.Run {
		return blob.Run{First: number.Draw(t, "first"), Count: number.Draw(t, "count")}
	}), 0, 4).Draw(t, "runs")
	lease := rapid.OneOf(rapid.SampledFrom(append(leased, 0)), rapid.Uint64()).Draw(t, "lease")
	switch rapid.IntRange(0, 8).Draw(t, "kind") {
	case 0:
		return &Attend{Node: node, Address: node, UploadSlots: number.Draw(t, "up"), DownloadSlots: number.Draw(t, "down"), Seed: node == "s1"}
	case 1:
		return &Leave{Node: node}
	case 2:
		w := &Want{Node: node, Digest: d, Size: size, Runs: runs}
		if rapid.Bool().Draw(t, "origin") {
			w.Origin = &Origin{Kind: URLOrigin, URL: rapid.SampledFrom([]string{"https://u:p@h/x", "", "://", "x"}).Draw(t, "url")}
		}
		return w
	case 3:
		return &Unwant{Node: node, Digest: d}
	case 4:
		links := bytes.Repeat([]byte{7}, 32*rapid.IntRange(0, 4).Draw(t, "links")+rapid.IntRange(0, 1).Draw(t, "odd"))
		return &Have{Node: node, Digest: d, Size: size, Runs: runs, FirstLink: number.Draw(t, "link"), Links: links, Sealed: rapid.IntRange(0, 5).Draw(t, "sealed") == 0}
	case 5:
		return &Drop{Node: node, Digest: d}
	case 6:
		return &Done{Node: node, Lease: lease, Bytes: int64(number.Draw(t, "bytes")), Time: Time(number.Draw(t, "time"))}
	case 7:
		return &Failed{Node: node, Lease: lease, Reason: Reason(rapid.IntRange(0, 12).Draw(t, "reason")), Status: number.Draw(t, "status"), RetryAfter: Time(number.Draw(t, "wait"))}
	}
	return &Tick{}
}

// Nodes may say anything: nothing panics, no count goes wrong, no slot is over
// its limit, and nobody waits who could be served.
func TestNonsenseDoesNoHarm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(Config{IdleTime: Second}, rapid.Uint64().Draw(t, "seed"))
		var leased []uint64
		now := Time(0)
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			now += Time(rapid.Int64Range(-int64(Second), int64(3*Second)).Draw(t, "step"))
			for _, d := range s.Apply(now, nonsense(t, leased), nil) {
				if d.Kind == Lease {
					leased = append(leased, d.ID)
				}
				if d.Kind >= decisionKinds || d.To == "" {
					t.Fatalf("decision %+v", d)
				}
			}
			checkState(t, s)
		}
	})
}

func TestLimitsHold(t *testing.T) {
	s := New(Config{MaxPieces: 40, MaxHoldings: 1000, MaxSlots: 3}, 1)
	s.Apply(0, &Attend{Node: "n1", UploadSlots: math.MaxInt, DownloadSlots: 9}, nil)
	if n := s.byID["n1"]; n.upSlots != 3 || n.downSlots != 3 {
		t.Errorf("slots %d %d, want 3 at most", n.upSlots, n.downSlots)
	}
	o := &Origin{Kind: URLOrigin, URL: "https://h/x"}
	for i, size := range []int64{10 * testPiece, 11 * testPiece} {
		d := blob.FromBytes([]byte{byte(i)})
		out := s.Apply(0, &Want{Node: "n1", Digest: d, Size: size, Origin: o}, nil)
		if refused := out[0].Kind == Refuse; refused != (i == 1) {
			t.Errorf("want of %d pieces: %v", size/testPiece, out[0])
		}
	}
	s.Apply(0, &Attend{Node: "n2"}, nil)
	for i := range 10 {
		s.Apply(0, &Have{Node: "n2", Digest: blob.FromBytes([]byte{byte(i)}), Size: testPiece, Sealed: true}, nil)
	}
	if held := len(s.byID["n2"].members); held != 3 {
		t.Errorf("%d holdings are kept, want the 3 that fit", held)
	}
	checkState(t, s)
}

// A node cannot make itself costly by saying the same runs over and over.
func TestRunsCostNoMoreThanTheBlob(t *testing.T) {
	runs := make([]blob.Run, 100000)
	for i := range runs {
		runs[i] = blob.Run{First: 0, Count: 1 << 20}
	}
	n := 0
	for range pieces(runs, 1<<20) {
		n++
	}
	if n > 5<<20 {
		t.Errorf("%d pieces of a blob of %d", n, 1<<20)
	}
	n = 0
	for p := range pieces([]blob.Run{{First: 5, Count: 2}, {First: 0, Count: 6}, {First: 9, Count: 9}}, 10) {
		n |= 1 << p
	}
	if n != 0b1001111111 {
		t.Errorf("pieces %b: runs in any order, overlapping and past the end must count", n)
	}
}

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	if err := (Config{AvoidTime: -1}).Validate(); err == nil || !strings.Contains(err.Error(), "AvoidTime") {
		t.Errorf("error %v, want one that names AvoidTime", err)
	}
	if err := (Config{ReaderUploadSlots: -1}).Validate(); err == nil {
		t.Error("a negative number of slots passes")
	}
	if got, want := (Config{}).withDefaults(), DefaultConfig(); got != want {
		t.Errorf("zero config is %+v, want the defaults %+v", got, want)
	}
}

func TestEventsSurviveTheirTextForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := nonsense(t, nil)
		if h, ok := e.(*Have); ok && (len(h.Links) == 0 || h.FirstLink < 0) {
			h.FirstLink, h.Links = 0, nil
		}
		if f, ok := e.(*Failed); ok && f.Reason >= reasons {
			f.Reason = Unspecified
		}
		for _, r := range runsOf(e) {
			if r.First < 0 || r.Count < 0 || r.First > math.MaxInt32 || r.Count > math.MaxInt32 {
				return // no text form
			}
		}
		line := AppendEvent(nil, 5, e)
		now, back, err := ParseEvent(string(line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if again := AppendEvent(nil, now, back); !bytes.Equal(line, again) {
			t.Fatalf("%s\ncame back as\n%s", line, again)
		}
	})
}

func runsOf(e Event) []blob.Run {
	switch e := e.(type) {
	case *Want:
		return e.Runs
	case *Have:
		return e.Runs
	}
	return nil
}

func TestParseEventNamesWhatIsWrong(t *testing.T) {
	d := string(blob.FromBytes(nil))
	for line, want := range map[string]string{
		"":                                  "a time and a name",
		"x tick":                            "no time",
		"0 dance n1":                        "no event",
		"0 attend":                          "want a node",
		"0 want n1":                         "want a digest",
		"0 want n1 sha256:zz":               "hex digits",
		"0 have n1 " + d + " runs=1":        "first+count",
		"0 have n1 " + d + " runs=-1+2":     "invalid syntax",
		"0 have n1 " + d + " links=!":       "illegal base64",
		"0 have n1 " + d + " sealed=1":      "takes no value",
		"0 attend n1 colour=blue":           "no such field",
		"0 failed n1 lease=1 reason=boring": "no such reason",
		`0 attend n1 rack="a`:               "quotes do not close",
	} {
		if _, _, err := ParseEvent(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", line, err, want)
		}
	}
}

// FuzzEvents plays any text as events.
func FuzzEvents(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txt")
	a := string(blob.FromBytes([]byte("a")))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		lines := strings.ReplaceAll(string(text), "s ", "000000000 ")
		f.Add(strings.ReplaceAll(lines, " a ", " "+a+" size=900000 "))
	}
	f.Add(fmt.Sprintf("0 attend n1\n1 want n1 %s size=900000 runs=0+1 kind=url url=\"http://h/ x\" private\n2 leave n1", a))
	f.Fuzz(func(t *testing.T, text string) {
		s := New(Config{MaxPieces: 1 << 12}, 1)
		for i, line := range strings.Split(text, "\n") {
			if i > 100 {
				return
			}
			now, e, err := ParseEvent(line)
			if err != nil {
				continue
			}
			if now2, e2, err := ParseEvent(string(AppendEvent(nil, now, e))); err != nil || now2 != now {
				t.Fatalf("%q does not survive its text form: %v %v", line, e2, err)
			}
			s.Apply(now, e, nil)
			checkState(t, s)
		}
	})
}
