package node

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/control"
)

func TestKnownMembersAreKept(t *testing.T) {
	dir := t.TempDir()
	if known, err := loadKnown(dir); err != nil || known.Schedulers != nil {
		t.Fatalf("of a new node: %v, %v", known, err)
	}
	want := control.Known{
		Schedulers: []control.Holder{{ID: "s1", Address: "10.0.0.1:65000"}, {ID: "s2", Address: "[fd00::1]:65000"}},
		Seeds:      []control.Holder{{ID: "seed", Address: "10.0.0.3:65020"}},
	}
	for range 2 { // over the one that is there, too
		if err := saveKnown(dir, want); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := loadKnown(dir); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read back %v, %v", got, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files left in the directory: %v, %v", entries, err)
	}
}

// A file that is broken, huge or hostile costs what it says and nothing else.
func TestBrokenKnownMembersAreNotUsed(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat(`{"node":"n","address":"a:1"},`, mostKnown+50), ",")
	for name, row := range map[string]struct {
		content    string
		schedulers int
		fails      bool
	}{
		"empty":      {"", 0, true},
		"cut":        {`{"schedulers":[{"node":"a"`, 0, true},
		"other kind": {`{"schedulers":"a:1"}`, 0, true},
		"huge":       {fmt.Sprintf(`{"x":"%s"}`, strings.Repeat("y", mostKnownBytes)), 0, true},
		"too many":   {`{"schedulers":[` + many + `]}`, mostKnown, false},
		"no address": {`{"schedulers":[{"node":"a"},{"node":"b","address":"b"},{"address":"c:1"},{"node":"d","address":"d:1"}]}`, 1, false},
		"from later": {`{"version":9,"schedulers":[{"node":"d","address":"d:1","zone":"z"}]}`, 1, false},
		"nobody":     {`{}`, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, knownFile), []byte(row.content), 0o600); err != nil {
				t.Fatal(err)
			}
			known, err := loadKnown(dir)
			if len(known.Schedulers) != row.schedulers || (err != nil) != row.fails {
				t.Errorf("%d schedulers, %v", len(known.Schedulers), err)
			}
		})
	}
}
