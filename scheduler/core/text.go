package core

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// The text form of events, one a line: the time in nanoseconds, the event's
// name, the node, the blob, then name=value for whatever is not zero. Traces
// and stories share it:
//
//	0 attend n1 address=10.0.0.1:7000 upload=2 download=2 rack=r1
//	1000 want n1 sha256:… size=1048576 kind=blob registry=docker.io repository=library/alpine
//	2000 have n1 sha256:… size=1048576 runs=0+2,3+1 first_link=1 links=<base64> sealed
//	3000 failed n1 lease=17 reason=busy

var reasonNames = [reasons]string{
	"unspecified", "unreachable", "busy", "missing", "bad_piece", "bad_digest", "origin", "store", "cancelled",
}

func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return reasonNames[Unspecified]
}

var kindNames = [originKinds]string{"", "blob", "manifest", "url"}

// AppendEvent appends the text form of e, without a line's end.
func AppendEvent(buf []byte, now Time, e Event) []byte {
	t := text{strconv.AppendInt(buf, int64(now), 10)}
	switch e := e.(type) {
	case *Attend:
		t.head("attend", e.Node, "")
		t.str("address", e.Address)
		t.num("upload", int64(e.UploadSlots))
		t.num("download", int64(e.DownloadSlots))
		t.str("region", e.Region)
		t.str("zone", e.Zone)
		t.str("rack", e.Rack)
		t.flag("seed", e.Seed)
	case *Leave:
		t.head("leave", e.Node, "")
	case *Want:
		t.head("want", e.Node, e.Digest)
		t.num("size", e.Size)
		t.runs(e.Runs)
		t.origin(e.Origin)
	case *Unwant:
		t.head("unwant", e.Node, e.Digest)
	case *Have:
		t.head("have", e.Node, e.Digest)
		t.num("size", e.Size)
		t.runs(e.Runs)
		if len(e.Links) > 0 {
			t.num("first_link", int64(e.FirstLink))
			t.str("links", base64.StdEncoding.EncodeToString(e.Links))
		}
		t.flag("sealed", e.Sealed)
	case *Drop:
		t.head("drop", e.Node, e.Digest)
	case *Done:
		t.head("done", e.Node, "")
		t.id(e.Lease)
		t.num("bytes", e.Bytes)
		t.num("time", int64(e.Time))
	case *Failed:
		t.head("failed", e.Node, "")
		t.id(e.Lease)
		t.str("reason", e.Reason.String())
		t.num("status", int64(e.Status))
		t.num("retry_after", int64(e.RetryAfter))
	case *Tick:
		t.buf = append(t.buf, " tick"...)
	}
	return t.buf
}

// AppendDecision appends a decision in the same form: its kind, the node, the
// blob, then what is not zero. Links are only counted.
func AppendDecision(buf []byte, d *Decision) []byte {
	t := text{buf}
	t.buf = append(t.buf, d.Kind.String()...)
	t.word(d.To)
	if d.Digest != "" {
		t.word(string(d.Digest))
	}
	if d.ID != 0 {
		t.id(d.ID)
	}
	if d.Kind == Lease {
		t.runs([]blob.Run{d.Run})
		t.str("holder", d.Holder.Node)
		t.origin(d.Origin)
		t.str("on_behalf", d.OnBehalf.Node)
		t.num("deadline", int64(d.Deadline))
		if n := len(d.Links) / d.Digest.LinkSize(); n > 0 {
			t.str("links", fmt.Sprintf("%d+%d", d.FirstLink, n))
		}
	}
	t.str("reason", d.Reason)
	return t.buf
}

type text struct{ buf []byte }

func (t *text) head(name, node string, d blob.Digest) {
	t.buf = append(append(t.buf, ' '), name...)
	t.word(node)
	if d != "" {
		t.word(string(d))
	}
}

func (t *text) word(v string) {
	t.buf = append(t.buf, ' ')
	t.value(v)
}

func (t *text) value(v string) {
	for i := range len(v) {
		if c := v[i]; c <= ' ' || c == '"' || c >= 0x7f {
			t.buf = strconv.AppendQuote(t.buf, v)
			return
		}
	}
	if v == "" {
		t.buf = append(t.buf, `""`...)
		return
	}
	t.buf = append(t.buf, v...)
}

func (t *text) name(name string) {
	t.buf = append(append(append(t.buf, ' '), name...), '=')
}

func (t *text) str(name, v string) {
	if v != "" {
		t.name(name)
		t.value(v)
	}
}

func (t *text) num(name string, v int64) {
	if v != 0 {
		t.name(name)
		t.buf = strconv.AppendInt(t.buf, v, 10)
	}
}

func (t *text) id(v uint64) {
	t.name("lease")
	t.buf = strconv.AppendUint(t.buf, v, 10)
}

func (t *text) flag(name string, v bool) {
	if v {
		t.buf = append(append(t.buf, ' '), name...)
	}
}

func (t *text) runs(runs []blob.Run) {
	for i, r := range runs {
		if i == 0 {
			t.name("runs")
		} else {
			t.buf = append(t.buf, ',')
		}
		t.buf = strconv.AppendInt(t.buf, int64(r.First), 10)
		t.buf = append(t.buf, '+')
		t.buf = strconv.AppendInt(t.buf, int64(r.Count), 10)
	}
}

func (t *text) origin(o *Origin) {
	if o == nil {
		return
	}
	kind := "none"
	if o.Kind != NoKind && o.Kind < originKinds {
		kind = kindNames[o.Kind]
	}
	t.str("kind", kind)
	t.str("registry", o.Registry)
	t.str("repository", o.Repository)
	t.str("url", o.URL)
	t.flag("private", o.Private)
}

// ParseEvent reads what AppendEvent wrote. It checks the form, not whether the
// values fit a blob: Apply does.
func ParseEvent(line string) (Time, Event, error) {
	words, err := split(line)
	if err != nil {
		return 0, nil, err
	}
	if len(words) < 2 {
		return 0, nil, fmt.Errorf("event %q: want a time and a name at least", clip(line))
	}
	now, err := strconv.ParseInt(words[0], 10, 64)
	if err != nil {
		return 0, nil, fmt.Errorf("event %q: %q is no time in nanoseconds", clip(line), clip(words[0]))
	}
	e, err := parse(words[1], words[2:])
	if err != nil {
		return 0, nil, fmt.Errorf("event %q: %w", clip(line), err)
	}
	return Time(now), e, nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// split cuts a line at its spaces; quotes, at the start of a word or behind a
// name's "=", keep a value together.
func split(line string) ([]string, error) {
	var words []string
	for {
		line = strings.TrimLeft(line, " ")
		if line == "" {
			return words, nil
		}
		end := strings.IndexByte(line, ' ')
		if quote := strings.IndexByte(line, '"'); quote >= 0 && (end < 0 || quote < end) && (quote == 0 || line[quote-1] == '=') {
			q, err := strconv.QuotedPrefix(line[quote:])
			if err != nil {
				return nil, fmt.Errorf("%q: the quotes do not close", clip(line))
			}
			v, err := strconv.Unquote(q)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", clip(q), err)
			}
			words = append(words, line[:quote]+v)
			line = line[quote+len(q):]
			continue
		}
		if end < 0 {
			end = len(line)
		}
		words = append(words, line[:end])
		line = line[end:]
	}
}

func parse(name string, words []string) (Event, error) {
	if name == "tick" {
		return &Tick{}, nil
	}
	if len(words) == 0 {
		return nil, errors.New("want a node")
	}
	f := fields{node: words[0], rest: words[1:]}
	switch name {
	case "want", "unwant", "have", "drop":
		if len(f.rest) == 0 {
			return nil, errors.New("want a digest")
		}
		d, err := blob.ParseDigest(f.rest[0])
		if err != nil {
			return nil, err
		}
		f.digest, f.rest = d, f.rest[1:]
	}
	if err := f.read(); err != nil {
		return nil, err
	}
	switch name {
	case "attend":
		return &Attend{
			Node: f.node, Address: f.str["address"], UploadSlots: int(f.num["upload"]), DownloadSlots: int(f.num["download"]),
			Region: f.str["region"], Zone: f.str["zone"], Rack: f.str["rack"], Seed: f.flag["seed"],
		}, nil
	case "leave":
		return &Leave{Node: f.node}, nil
	case "want":
		return &Want{Node: f.node, Digest: f.digest, Size: f.num["size"], Runs: f.runs, Origin: f.origin()}, nil
	case "unwant":
		return &Unwant{Node: f.node, Digest: f.digest}, nil
	case "have":
		return &Have{
			Node: f.node, Digest: f.digest, Size: f.num["size"], Runs: f.runs,
			FirstLink: int(f.num["first_link"]), Links: f.links, Sealed: f.flag["sealed"],
		}, nil
	case "drop":
		return &Drop{Node: f.node, Digest: f.digest}, nil
	case "done":
		return &Done{Node: f.node, Lease: f.lease, Bytes: f.num["bytes"], Time: Time(f.num["time"])}, nil
	case "failed":
		return &Failed{
			Node: f.node, Lease: f.lease, Reason: f.reason, Status: int(f.num["status"]), RetryAfter: Time(f.num["retry_after"]),
		}, nil
	}
	return nil, fmt.Errorf("there is no event %q", clip(name))
}

// fields is what stands behind an event's name.
type fields struct {
	node   string
	digest blob.Digest
	rest   []string
	str    map[string]string
	num    map[string]int64
	flag   map[string]bool
	runs   []blob.Run
	links  []byte
	lease  uint64
	reason Reason
}

func (f *fields) read() error {
	f.str, f.num, f.flag = map[string]string{}, map[string]int64{}, map[string]bool{}
	for _, word := range f.rest {
		name, v, ok := strings.Cut(word, "=")
		if err := f.take(name, v, ok); err != nil {
			return fmt.Errorf("%q: %w", clip(word), err)
		}
	}
	return nil
}

func (f *fields) take(name, v string, hasValue bool) (err error) {
	switch name {
	case "seed", "sealed", "private":
		if hasValue {
			return errors.New("takes no value")
		}
		f.flag[name] = true
	case "address", "region", "zone", "rack", "kind", "registry", "repository", "url":
		f.str[name] = v
	case "upload", "download", "size", "first_link", "bytes", "time", "status", "retry_after":
		f.num[name], err = strconv.ParseInt(v, 10, 64)
	case "lease":
		f.lease, err = strconv.ParseUint(v, 10, 64)
	case "runs":
		f.runs, err = parseRuns(v)
	case "links":
		f.links, err = base64.StdEncoding.DecodeString(v)
	case "reason":
		for r, known := range reasonNames {
			if known == v {
				f.reason = Reason(r)
				return nil
			}
		}
		return errors.New("there is no such reason")
	default:
		return errors.New("there is no such field")
	}
	return err
}

func parseRuns(v string) ([]blob.Run, error) {
	var runs []blob.Run
	for one := range strings.SplitSeq(v, ",") {
		first, count, ok := strings.Cut(one, "+")
		if !ok {
			return nil, errors.New("want first+count")
		}
		a, err := strconv.ParseUint(first, 10, 31)
		if err != nil {
			return nil, err
		}
		b, err := strconv.ParseUint(count, 10, 31)
		if err != nil {
			return nil, err
		}
		runs = append(runs, blob.Run{First: int(a), Count: int(b)})
	}
	return runs, nil
}

func (f *fields) origin() *Origin {
	kind, ok := f.str["kind"]
	if !ok {
		return nil
	}
	o := &Origin{Registry: f.str["registry"], Repository: f.str["repository"], URL: f.str["url"], Private: f.flag["private"]}
	for k, name := range kindNames {
		if name == kind {
			o.Kind = OriginKind(k)
		}
	}
	return o
}
