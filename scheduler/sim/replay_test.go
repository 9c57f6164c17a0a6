package sim_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
	"github.com/damselfly-p2p/damselfly/scheduler/sim"
)

// recording drives a State as a live scheduler does and writes its trace.
type recording struct {
	state *core.State
	now   core.Time
	text  []byte
	out   []core.Decision // not yet acted on
}

func (r *recording) seed(n uint64) {
	r.state, r.out = core.New(core.Config{}, n), nil
	r.text = fmt.Appendf(r.text, "# seed %d\n", n)
}

func (r *recording) apply(e core.Event) {
	r.now += 100 * core.Microsecond
	r.text = append(core.AppendEvent(r.text, r.now, e), '\n')
	before := len(r.out)
	r.out = r.state.Apply(r.now, e, r.out)
	for i := range r.out[before:] {
		r.text = append(core.AppendDecision(append(r.text, '\t'), &r.out[before+i]), '\n')
	}
}

// crowd has nodes pull a blob: each lease ends at once, the last asked first.
func (r *recording) crowd(nodes, pieces int) {
	digest := blob.Digest("sha256:" + strings.Repeat("ab", 32))
	size := int64(pieces) * 256 << 10
	r.apply(&core.Attend{Node: "seed", Address: "10.0.0.1:1", UploadSlots: 8, DownloadSlots: 8, Seed: true})
	for i := range nodes {
		n := fmt.Sprintf("n%d", i)
		r.apply(&core.Attend{Node: n, Address: "10.0.1.1:1", Rack: fmt.Sprint("r", i%3)})
		r.apply(&core.Want{Node: n, Digest: digest, Size: size, Origin: &core.Origin{Kind: core.BlobOrigin, Registry: "example.com", Repository: "a b"}})
	}
	known := make([]bool, pieces)
	links := rand.New(rand.NewPCG(1, 1))
	for len(r.out) > 0 {
		d := r.out[0]
		r.out = r.out[1:]
		if d.Kind != core.Lease {
			continue
		}
		for p := d.Run.First; p < d.Run.End(); p++ {
			have := core.Have{Node: d.To, Digest: digest, Size: size, Runs: []blob.Run{{First: p, Count: 1}}}
			if !known[p] && d.Origin != nil {
				known[p] = true
				have.FirstLink, have.Links = p+1, make([]byte, digest.LinkSize())
				for i := range have.Links {
					have.Links[i] = byte(links.Uint32())
				}
			}
			r.apply(&have)
		}
		r.apply(&core.Done{Node: d.To, Lease: d.ID, Bytes: size / int64(pieces), Time: core.Millisecond})
	}
	r.apply(&core.Tick{})
}

// trace is that of a scheduler that restarted once.
func trace() []string {
	r := recording{}
	r.seed(17)
	r.crowd(12, 32)
	r.seed(18446744073709551615)
	r.now = 0
	r.crowd(3, 8)
	return strings.Split(strings.TrimSuffix(string(r.text), "\n"), "\n")
}

func replay(lines []string, cut bool) (sim.Tally, error) {
	return replayUnder(core.Config{}, lines, cut)
}

func replayUnder(cfg core.Config, lines []string, cut bool) (sim.Tally, error) {
	ticks := int64(0)
	r := sim.NewReplay(cfg, func() int64 { ticks += 100; return ticks })
	for _, line := range lines {
		if err := r.Line(line); err != nil {
			return r.Tally(), err
		}
	}
	err := r.Finish(cut)
	return r.Tally(), err
}

func kindOf(lines []string) (events, decisions []int) {
	for i, l := range lines {
		switch l[0] {
		case '\t':
			decisions = append(decisions, i)
		case '#':
		default:
			events = append(events, i)
		}
	}
	return events, decisions
}

func TestReplayOfATraceDecidesTheSame(t *testing.T) {
	lines := trace()
	events, decisions := kindOf(lines)
	tally, err := replay(lines, false)
	if err != nil {
		t.Fatal(err)
	}
	if tally.Events != int64(len(events)) || tally.Decisions != int64(len(decisions)) || len(decisions) < 200 || tally.States != 2 ||
		tally.Unrecorded != 0 || len(tally.Notes) > 0 || tally.Nanoseconds != 100*tally.Events {
		t.Errorf("%d events and %d decisions, counted %+v", len(events), len(decisions), tally)
	}
	if want := core.Time(len(events)-2) * 100 * core.Microsecond; tally.Covered != want {
		t.Errorf("covered %d ns, want %d", tally.Covered, want)
	}
}

func TestReplayFindsDamage(t *testing.T) {
	whole := trace()
	events, decisions := kindOf(whole)
	at := decisions[len(decisions)/2]
	lease := at
	for !strings.Contains(whole[lease], "holder=n") {
		lease++
	}
	without := func(i int) []string { return append(append([]string{}, whole[:i]...), whole[i+1:]...) }
	with := func(i int, line string) []string {
		return append(append(append([]string{}, whole[:i]...), line), whole[i:]...)
	}
	for name, c := range map[string]struct {
		lines []string
		line  int // from 0
		want  []string
	}{
		"another holder":        {append(append(append([]string{}, whole[:lease]...), strings.Replace(whole[lease], "holder=n", "holder=m", 1)), whole[lease+1:]...), lease, []string{"expected: lease", "holder=m", "holder=n"}},
		"a decision is missing": {without(at), at, []string{"got:"}},
		"a decision too many":   {with(events[5], "\tcancel n1 lease=5"), events[5], []string{"expected: cancel n1 lease=5", "got:      no further decision"}},
		"the last is missing":   {whole[:decisions[len(decisions)-1]], decisions[len(decisions)-1], []string{"expected: no further decision"}},
		"another seed":          {append([]string{"# seed 18"}, whole[1:]...), -1, []string{"expected:"}},
		"an event is missing":   {without(events[3]), -1, nil},
		"no event":              {with(at, "1000 wants n1"), at, []string{"wants", "--trace"}},
		"no seed":               {whole[1:], -1, []string{"# seed"}},
		"bad seed":              {append([]string{"# seed x"}, whole[1:]...), 0, []string{"no seed"}},
		"no beginning":          {[]string{"# seed 17", "\tqueued n1"}, 1, []string{"before any event"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := replay(c.lines, false)
			if err == nil {
				t.Fatal("nothing was found")
			}
			var d *sim.Difference
			if strings.HasPrefix(name, "a") && (!errors.As(err, &d) || d.Event == "" || d.EventLine == 0) {
				t.Errorf("not a difference: %v", err)
			}
			if c.line >= 0 && !strings.Contains(err.Error(), fmt.Sprintf("line %d:", c.line+1)) {
				t.Errorf("does not name line %d: %v", c.line+1, err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("lacks %q: %v", want, err)
				}
			}
		})
	}
}

// Old traces have no decisions, with or without a seed; a new part may follow.
func TestReplayOfEventsOnly(t *testing.T) {
	var bare []string
	for _, l := range trace() {
		if l[0] != '\t' {
			bare = append(bare, l)
		}
	}
	events, _ := kindOf(bare)
	first, _ := kindOf(bare[:len(bare)/2])
	for _, lines := range [][]string{bare, append([]string{"# begun"}, bare[1:len(bare)/2]...)} {
		tally, err := replay(lines, false)
		want := int64(len(events))
		if len(lines) < len(bare) {
			want = int64(len(first))
		}
		if err != nil || tally.Events != want || tally.Unrecorded != want {
			t.Errorf("want %d unrecorded, got %+v, %v", want, tally, err)
		}
	}
	tally, err := replay(append(bare[:len(bare):len(bare)], trace()...), false)
	if err != nil || tally.Unrecorded != int64(len(events)) || tally.Events != 2*int64(len(events)) {
		t.Errorf("old and new in one file: %+v, %v", tally, err)
	}
}

func TestReplayOfACutTrace(t *testing.T) {
	whole := trace()
	_, decisions := kindOf(whole)
	tally, err := replay(whole[:decisions[len(decisions)/2]], true)
	if err != nil || len(tally.Notes) != 1 || !strings.Contains(tally.Notes[0].Text, "cut") {
		t.Errorf("%+v, %v", tally, err)
	}
}

// Where the live core failed, the trace has an event without decisions, then a seed.
func TestReplayOfAPanic(t *testing.T) {
	whole := trace()
	_, decisions := kindOf(whole)
	at := decisions[40]
	for whole[at-1][0] == '\t' {
		at--
	}
	lines := append(append([]string{}, whole[:at]...), whole...)
	tally, err := replay(lines, false)
	if err != nil || tally.States != 3 || len(tally.Notes) != 1 || tally.Notes[0].Line != int64(at) {
		t.Errorf("event in line %d: %+v, %v", at, tally, err)
	}
}

// FuzzReplay: whatever stands in a file, the replay ends with an error at worst.
func FuzzReplay(f *testing.F) {
	f.Add(strings.Join(trace()[:60], "\n"))
	f.Add("# seed 1\n5 have n1 sha256:" + strings.Repeat("ab", 32) + " size=9999999 runs=0+1 first_link=1 links=" + base64.StdEncoding.EncodeToString(make([]byte, 32)))
	f.Add("1 tick\n\tqueued n1\n# seed 7\n\n# seed\n2 attend \"\"")
	f.Fuzz(func(t *testing.T, text string) {
		lines := strings.Split(text, "\n")
		tally, err := replayUnder(core.Config{MaxPieces: 4096}, lines, false)
		if err == nil && tally.Events > int64(len(lines)) {
			t.Errorf("%d events in %d lines", tally.Events, len(lines))
		}
	})
}
