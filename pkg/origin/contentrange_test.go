package origin

import (
	"errors"
	"fmt"
	"testing"
)

func TestParseContentRange(t *testing.T) {
	for in, want := range map[string]contentRange{
		"bytes 0-0/1":                   {0, 0, 1},
		"bytes 5-9/10":                  {5, 9, 10},
		"Bytes 5-9/*":                   {5, 9, -1},
		"bytes */10":                    {-1, -1, 10},
		"bytes  0-1/2":                  {0, 1, 2},
		"bytes 0-1/99999999999999999":   {0, 1, 99999999999999999},
		"bytes 00-01/0002":              {0, 1, 2},
		"bytes 3-9223372036854775799/*": {3, 9223372036854775799, -1},
	} {
		if got, err := parseContentRange(in); err != nil || got != want {
			t.Errorf("%q: got %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "bytes", "bytes ", "bytes 0-1", "bytes=0-1/2", "items 0-1/2", "bytes 1-0/2", "bytes 0-2/2", "bytes -1-1/2", "bytes 0--1/2",
		"bytes */*", "bytes +0-1/2", "bytes 0-1/-2", "bytes 0x0-1/2", "bytes 0-1/2/3", "bytes 0-9223372036854775807/*",
		"bytes 0-18446744073709551615/*", "bytes 0-1/99999999999999999999", "bytes 0-1 /2", "bytes a-b/c",
	} {
		if got, err := parseContentRange(in); !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: got %v, %v; want ErrProtocol", in, got, err)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-1/2", "bytes */2", "bytes 5-9/*", "bytes 0-9223372036854775807/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseContentRange(s)
		if err != nil {
			return
		}
		again := fmt.Sprintf("bytes %d-%d/%d", r.First, r.Last, r.Size)
		switch {
		case r.First == -1 && r.Last == -1 && r.Size >= 0:
			again = fmt.Sprintf("bytes */%d", r.Size)
		case r.First < 0 || r.Last < r.First || r.Last+1 <= 0 || r.Size >= 0 && r.Last >= r.Size:
			t.Fatalf("%q: %v", s, r)
		case r.Size < 0:
			again = fmt.Sprintf("bytes %d-%d/*", r.First, r.Last)
		}
		if r2, err := parseContentRange(again); err != nil || r2 != r {
			t.Fatalf("%q is %v, written %q, read %v, %v", s, r, again, r2, err)
		}
	})
}
