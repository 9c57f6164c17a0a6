package core

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

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
			Region: f.str["region"], Zone: f.str["zone"], Rack: f.str["rack"], Seed: f.flag["seed"], Machine: f.str["machine"],
		}, nil
	case "leave":
		return &Leave{Node: f.node}, nil
	case "want":
		return &Want{Node: f.node, Digest: f.digest, Size: f.num["size"], Runs: f.runs, Origin: f.origin(),
			Urgent: f.urgent, Priority: Priority(min(max(f.num["priority"], 0), 255))}, nil
	case "unwant":
		return &Unwant{Node: f.node, Digest: f.digest}, nil
	case "have":
		return &Have{
			Node: f.node, Digest: f.digest, Size: f.num["size"], Runs: f.runs,
			FirstLink: int(f.num["first_link"]), Links: f.links, Sealed: f.flag["sealed"],
		}, nil
	case "drop":
		return &Drop{Node: f.node, Digest: f.digest}, nil
	case "ending":
		return &Ending{Node: f.node, Lease: f.lease}, nil
	case "slots":
		return &Slots{Node: f.node, Upload: int(f.num["upload"]), Download: int(f.num["download"])}, nil
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
	urgent []blob.Run
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
	case "address", "region", "zone", "rack", "machine", "kind", "registry", "repository", "url":
		f.str[name] = v
	case "upload", "download", "size", "first_link", "bytes", "time", "status", "retry_after", "priority":
		f.num[name], err = strconv.ParseInt(v, 10, 64)
	case "lease":
		f.lease, err = strconv.ParseUint(v, 10, 64)
	case "runs":
		f.runs, err = parseRuns(v)
	case "urgent":
		f.urgent, err = parseRuns(v)
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
