package core

import (
	"encoding/base64"
	"fmt"
	"strconv"

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

// EventName is the name of an event's kind: "attend", "want", …
func EventName(e Event) string {
	switch e.(type) {
	case *Attend:
		return "attend"
	case *Leave:
		return "leave"
	case *Want:
		return "want"
	case *Unwant:
		return "unwant"
	case *Have:
		return "have"
	case *Drop:
		return "drop"
	case *Ending:
		return "ending"
	case *Slots:
		return "slots"
	case *Done:
		return "done"
	case *Failed:
		return "failed"
	}
	return "tick"
}

// AppendEvent appends the text form of e, without a line's end.
func AppendEvent(buf []byte, now Time, e Event) []byte {
	t := text{strconv.AppendInt(buf, int64(now), 10)}
	switch e := e.(type) {
	case *Attend:
		t.head(e, e.Node, "")
		t.str("address", e.Address)
		t.num("upload", int64(e.UploadSlots))
		t.num("download", int64(e.DownloadSlots))
		t.str("region", e.Region)
		t.str("zone", e.Zone)
		t.str("rack", e.Rack)
		t.flag("seed", e.Seed)
		t.str("machine", e.Machine)
	case *Leave:
		t.head(e, e.Node, "")
	case *Want:
		t.head(e, e.Node, e.Digest)
		t.num("size", e.Size)
		t.runs("runs", e.Runs)
		t.origin(e.Origin)
		t.runs("urgent", e.Urgent)
		t.num("priority", int64(e.Priority))
	case *Unwant:
		t.head(e, e.Node, e.Digest)
	case *Have:
		t.head(e, e.Node, e.Digest)
		t.num("size", e.Size)
		t.runs("runs", e.Runs)
		if len(e.Links) > 0 {
			t.num("first_link", int64(e.FirstLink))
			t.str("links", base64.StdEncoding.EncodeToString(e.Links))
		}
		t.flag("sealed", e.Sealed)
	case *Drop:
		t.head(e, e.Node, e.Digest)
	case *Ending:
		t.head(e, e.Node, "")
		t.id(e.Lease)
	case *Slots:
		t.head(e, e.Node, "")
		t.num("upload", int64(e.Upload))
		t.num("download", int64(e.Download))
	case *Done:
		t.head(e, e.Node, "")
		t.id(e.Lease)
		t.num("bytes", e.Bytes)
		t.num("time", int64(e.Time))
	case *Failed:
		t.head(e, e.Node, "")
		t.id(e.Lease)
		t.str("reason", e.Reason.String())
		t.num("status", int64(e.Status))
		t.num("retry_after", int64(e.RetryAfter))
	case *Tick:
		t.head(e, "", "")
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
		t.runs("runs", []blob.Run{d.Run})
		t.str("holder", d.Holder.Node)
		t.origin(d.Origin)
		t.str("on_behalf", d.OnBehalf.Node)
		t.num("deadline", int64(d.Deadline))
		if n := len(d.Links) / d.Digest.LinkSize(); n > 0 {
			t.str("links", fmt.Sprintf("%d+%d", d.FirstLink, n))
		}
	}
	t.str("reason", d.Reason)
	t.num("retry_after", int64(d.RetryAfter))
	return t.buf
}

type text struct{ buf []byte }

func (t *text) head(e Event, node string, d blob.Digest) {
	t.buf = append(append(t.buf, ' '), EventName(e)...)
	if _, tick := e.(*Tick); tick {
		return
	}
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

func (t *text) runs(name string, runs []blob.Run) {
	for i, r := range runs {
		if i == 0 {
			t.name(name)
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
