package server

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// What nodes say all the time, Have, Done, Ending and Ping, is decoded from the wire
// straight into events that are used again: at tens of thousands a second, generated
// messages are most of what the garbage collector has to do, and its turns are what
// delays decisions. Everything else, and everything unusual, is decoded as generated
// code does it. A fuzz test holds the two to the same result.

// Field numbers of scheduler.proto.
const (
	fieldEvents = 1 // NodeMessage
	fieldHave   = 4 // NodeEvent
	fieldDone   = 6
	fieldPing   = 8
	fieldEnding = 9
)

var errWire = errors.New("the message is malformed")

// memory is what the frequent events of one message are decoded into.
type memory struct {
	bytes  []byte // the message
	events [4]core.Event
	pings  [2]uint64
	have   core.Have
	done   core.Done
	ending core.Ending
	runs   [4]blob.Run
	used   struct{ have, done, ending bool }
}

// raw decodes a NodeMessage into m, which must not be in use. What it gives points
// into b.
func (d *decoder) raw(b []byte, m *memory) (message, error) {
	m.used.have, m.used.done, m.used.ending = false, false, false
	out := message{events: m.events[:0], pings: m.pings[:0], memory: m}
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return message{}, errWire
		}
		if num != fieldEvents || kind != protowire.BytesType {
			skip := protowire.ConsumeFieldValue(num, kind, b[n:])
			if skip < 0 {
				return message{}, errWire
			}
			b = b[n+skip:]
			continue
		}
		e, size := protowire.ConsumeBytes(b[n:])
		if size < 0 {
			return message{}, errWire
		}
		b = b[n+size:]
		if len(out.events)+len(out.pings) >= maxEvent {
			return message{}, fmt.Errorf("more than %d events in one message, at most %d are taken", maxEvent, maxEvent)
		}
		if err := d.rawEvent(e, m, &out); err != nil {
			return message{}, err
		}
	}
	return out, nil
}

// rawEvent adds one event to out.
func (d *decoder) rawEvent(b []byte, m *memory, out *message) error {
	num, kind, n := protowire.ConsumeTag(b)
	if n > 0 && kind == protowire.BytesType {
		body, size := protowire.ConsumeBytes(b[n:])
		if size == len(b)-n && d.frequent(int(num), body, m, out) {
			return d.err
		}
	}
	var e damselflyv1.NodeEvent
	if proto.Unmarshal(b, &e) != nil {
		return errWire
	}
	if p := e.GetPing(); p != nil {
		out.pings = append(out.pings, p.GetNumber())
		return nil
	}
	event, err := d.event(&e)
	if err == nil && event != nil {
		out.events = append(out.events, event)
	}
	return err
}

// frequent takes an event of the frequent kinds. It tells false, and has changed
// nothing, where it does not: then the generated code has to look at it. d.err is
// what is wrong with an event that it has taken.
func (d *decoder) frequent(num int, body []byte, m *memory, out *message) bool {
	d.err = nil
	switch {
	case num == fieldPing:
		var v [1]uint64
		if !varints(body, v[:]) {
			return false
		}
		out.pings = append(out.pings, v[0])
	case num == fieldEnding && !m.used.ending:
		var v [1]uint64
		if !varints(body, v[:]) {
			return false
		}
		m.used.ending = true
		m.ending = core.Ending{Node: d.node, Lease: v[0]}
		out.events = append(out.events, &m.ending)
	case num == fieldDone && !m.used.done:
		var v [3]uint64
		if !varints(body, v[:]) {
			return false
		}
		m.used.done = true
		m.done = d.done(v[0], v[1], v[2])
		out.events = append(out.events, &m.done)
	case num == fieldHave && !m.used.have:
		var h rawHave
		if !h.parse(body, m.runs[:]) {
			return false
		}
		if d.err = d.takeHave(&h, m); d.err == nil {
			m.used.have = true
			out.events = append(out.events, &m.have)
		}
	default:
		return false
	}
	return true
}

// varints reads a message whose fields are the varints 1 to len(into).
func varints(b []byte, into []uint64) bool {
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 || kind != protowire.VarintType || int(num) > len(into) {
			return false
		}
		v, size := protowire.ConsumeVarint(b[n:])
		if size < 0 {
			return false
		}
		into[num-1] = v
		b = b[n+size:]
	}
	return true
}

// rawHave is a Have whose values nobody has checked.
type rawHave struct {
	digest, links []byte
	size, first   uint64
	sealed        bool
	runs          []blob.Run
}

// parse is false for anything unusual, more runs than there is room for among it.
func (h *rawHave) parse(b []byte, runs []blob.Run) bool {
	h.runs = runs[:0]
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		var bytes []byte
		var v uint64
		switch {
		case kind == protowire.BytesType:
			bytes, n = protowire.ConsumeBytes(b)
		case kind == protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		default:
			return false
		}
		if n < 0 {
			return false
		}
		b = b[n:]
		switch {
		case num == 1 && kind == protowire.BytesType:
			h.digest = bytes
		case num == 2 && kind == protowire.VarintType:
			h.size = v
		case num == 3 && kind == protowire.BytesType && len(h.runs) < cap(h.runs):
			var r [2]uint64
			if !varints(bytes, r[:]) {
				return false
			}
			h.runs = append(h.runs, blob.Run{First: int(uint32(r[0])), Count: int(uint32(r[1]))})
		case num == 4 && kind == protowire.VarintType:
			h.first = uint64(uint32(v))
		case num == 5 && kind == protowire.BytesType:
			h.links = bytes
		case num == 6 && kind == protowire.VarintType:
			h.sealed = protowire.DecodeBool(v)
		default:
			return false
		}
	}
	return true
}

// lately is the digests that a node spoke of last: it tells of the same blobs again and
// again.
type lately struct {
	last [4]string
	next int
}

// digest is b as a string.
func (l *lately) digest(b []byte) string {
	for i := range l.last {
		if string(b) == l.last[i] { // compared without making a string of it
			return l.last[i]
		}
	}
	d := string(b)
	l.last[l.next] = d
	l.next = (l.next + 1) % len(l.last)
	return d
}

// takeHave checks a Have as decoder.have does.
func (d *decoder) takeHave(h *rawHave, m *memory) error {
	g, l, err := layout("have", d.lately.digest(h.digest), h.size)
	if err != nil {
		return err
	}
	if err := checkRuns("have.runs", l, h.runs); err != nil {
		return err
	}
	if err := checkLinks(g, l, h.first, h.links); err != nil {
		return err
	}
	m.have = core.Have{
		Node: d.node, Digest: g, Size: l.Size(), Runs: h.runs,
		FirstLink: int(h.first), Links: h.links, Sealed: h.sealed,
	}
	return nil
}
