package identity

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Statements travel from one CA directory to another: the newest holds, whatever
// the order in which they come.
func TestNewestStatementHolds(t *testing.T) {
	ca, other := testCA(t), (*CA)(nil)
	id := testKey(t).ID()
	var said []Statement
	for _, denied := range []bool{true, false, true} {
		do := ca.Allow
		if denied {
			do = ca.Deny
		}
		if err := do(id); err != nil {
			t.Fatal(err)
		}
		now, err := ca.Statements()
		if err != nil || len(now) != 1 || now[0].ID != id || now[0].Denied != denied {
			t.Fatalf("kept %v, %v", now, err)
		}
		said = append(said, now[0])
	}
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		other = testCA(t)
		for n, i := range order {
			news, err := other.Accept([]Statement{said[i]})
			if err != nil {
				t.Fatal(err)
			}
			if want := n == 0 || i > slices.Max(order[:n]); want != (len(news) == 1) {
				t.Fatalf("%v at %d: news are %v", order, n, news)
			}
		}
		if got, err := other.Statements(); err != nil || len(got) != 1 || got[0] != said[2] {
			t.Fatalf("%v: kept %v, %v, want %v", order, got, err, said[2])
		}
	}
	if denied, err := other.Denied(id); err != nil || !denied {
		t.Errorf("denied there: %v, %v", denied, err)
	}
	// What is said here is newer than what came, also from a clock that runs ahead.
	ahead := Statement{ID: id, Denied: true, At: time.Now().Add(24 * time.Hour).UTC()}
	if news, err := other.Accept([]Statement{ahead}); err != nil || len(news) != 1 {
		t.Fatalf("from a clock ahead: %v, %v", news, err)
	}
	if err := other.Allow(id); err != nil {
		t.Fatal(err)
	}
	if denied, err := other.Denied(id); err != nil || denied {
		t.Errorf("after Allow denied: %v, %v", denied, err)
	}
	if ids, err := other.DeniedIDs(); err != nil || len(ids) != 0 {
		t.Errorf("after Allow the list is %v, %v", ids, err)
	}
	same := Statement{ID: id, Denied: true, At: said[0].At}
	if allow := (Statement{ID: id, At: said[0].At}); !same.Replaces(allow) || allow.Replaces(same) {
		t.Error("of two statements of one moment the one that denies does not hold")
	}
}

func TestStatementsFromElsewhereAreChecked(t *testing.T) {
	ca := testCA(t)
	id := testKey(t).ID()
	for _, s := range []Statement{
		{ID: "../ca.key", Denied: true, At: time.Now()}, {ID: "", At: time.Now()}, {ID: lockFile, At: time.Now()},
		{ID: id, Denied: true}, {ID: id, Denied: true, At: time.Unix(1<<40, 0)},
	} {
		if news, err := ca.Accept([]Statement{s}); err == nil || len(news) != 0 {
			t.Errorf("%+v: news are %v, %v", s, news, err)
		}
	}
	if got, err := ca.Statements(); err != nil || len(got) != 0 {
		t.Errorf("kept %v, %v", got, err)
	}
}

// A file that an operator made, or damaged, denies.
func TestDeniedByHand(t *testing.T) {
	ca := testCA(t)
	for _, content := range []string{"", "denied", "allowed", "allowed yesterday", "\x00", strings.Repeat("x", 1<<16)} {
		id := testKey(t).ID()
		if err := os.WriteFile(filepath.Join(ca.dir, deniedDir, id), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if denied, err := ca.Denied(id); err != nil || !denied {
			t.Errorf("%.10q: denied is %v, %v", content, denied, err)
		}
		before, err := ca.StatementsChanged()
		if err != nil {
			t.Fatal(err)
		}
		if err := ca.Allow(id); err != nil {
			t.Fatal(err)
		}
		if denied, err := ca.Denied(id); err != nil || denied {
			t.Errorf("%.10q: after Allow denied is %v, %v", content, denied, err)
		}
		if after, err := ca.StatementsChanged(); err != nil || after.Before(before) {
			t.Errorf("the directory changed at %v, then at %v, %v", before, after, err)
		}
	}
}

// The list is bounded; what allows gives way to what denies, and the oldest first.
func TestStatementsAreBounded(t *testing.T) {
	ca := testCA(t)
	var ids []string
	start := time.Now().Add(-time.Hour).UTC()
	var many []Statement
	for i := range MaxStatements {
		id := testKeyID(t)
		ids = append(ids, id)
		many = append(many, Statement{ID: id, Denied: i%2 == 0, At: start.Add(time.Duration(i))})
	}
	// As files: Accept of each would sync each to disk.
	for _, s := range many {
		content := wordAllowed
		if s.Denied {
			content = wordDenied
		}
		if err := os.WriteFile(filepath.Join(ca.dir, deniedDir, s.ID), []byte(content+" "+s.At.Format(time.RFC3339Nano)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ca.Accept([]Statement{{ID: testKeyID(t), At: start.Add(-1)}}); err != nil {
		t.Fatal(err)
	}
	one := testKeyID(t)
	if err := ca.Deny(one); err != nil {
		t.Fatal(err)
	}
	got, err := ca.Statements()
	if err != nil || len(got) != MaxStatements {
		t.Fatalf("%d statements, %v", len(got), err)
	}
	kept := func(id string) bool {
		return slices.ContainsFunc(got, func(s Statement) bool { return s.ID == id })
	}
	if !kept(one) || kept(ids[1]) || !kept(ids[0]) || !kept(ids[3]) {
		t.Error("not the oldest statement that allows gave way")
	}
	for i, s := range got {
		if s.Denied {
			continue
		}
		got[i].Denied = true
		if err := os.WriteFile(filepath.Join(ca.dir, deniedDir, s.ID), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := ca.Deny(testKeyID(t)); err == nil || !strings.Contains(err.Error(), "allow some") {
		t.Errorf("one more than the bound was denied: %v", err)
	}
	if err := ca.Allow(testKeyID(t)); err != nil {
		t.Errorf("allowing a node that is not denied: %v", err)
	}
}

// testKeyID makes the ID of a key that is kept nowhere.
func testKeyID(t *testing.T) string {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return key.ID()
}
