package identity

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Who is denied by what a node hears is cut off at once and refused from then on, as a
// caller and as one who is called, also by the node's next process, until it is allowed.
func TestHearCutsOff(t *testing.T) {
	ca := testCA(t)
	node, other := testIdentity(t, ca, RoleNode), testIdentity(t, ca, RoleNode)
	service, err := ca.Server(Options{})
	if err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, node, service)
	theirs, _ := serve(t, other, service)
	call := func(from *Identity, to string) error {
		_, err := damselflyv1.NewPeerClient(dial(t, to, from.ClientCredentials(anyRole()))).Holdings(t.Context(), &damselflyv1.HoldingsRequest{})
		return err
	}
	open := damselflyv1.NewPeerClient(dial(t, address, other.ClientCredentials(anyRole())))
	if _, err := open.Holdings(t.Context(), &damselflyv1.HoldingsRequest{}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, step := range []struct {
		what   string
		said   Statement
		denied bool
	}{
		{"denied", Statement{ID: other.ID(), Denied: true, At: now}, true},
		{"an older word that allows", Statement{ID: other.ID(), At: now.Add(-time.Second)}, true},
		{"allowed", Statement{ID: other.ID(), At: now.Add(time.Second)}, false},
		{"an older word that denies", Statement{ID: other.ID(), Denied: true, At: now}, false},
		{"denied again", Statement{ID: other.ID(), Denied: true, At: now.Add(2 * time.Second)}, true},
	} {
		node.Hear([]Statement{step.said})
		if err := call(other, address); (err != nil) != step.denied {
			t.Errorf("%s: its call: %v", step.what, err)
		}
		if err := call(node, theirs); (err != nil) != step.denied {
			t.Errorf("%s: a call to it: %v", step.what, err)
		}
		if n := node.Disconnect(func(id string) bool { return step.denied && id == other.ID() }); n != 0 {
			t.Errorf("%s: %d of its connections are open", step.what, n)
		}
	}
	if err := node.denials.save(); err != nil {
		t.Fatal(err)
	}
	again := loadDenials(node.dir, zap.NewNop())
	if !again.denied(other.ID()) || !bytes.Equal(HashStatements(again.all()), node.Heard()) {
		t.Error("the next process does not know it")
	}
}

// A node keeps so many statements and no more: those that allow give way first, then the
// oldest. What is no statement is left out.
func TestDenialsAreBounded(t *testing.T) {
	d := loadDenials(t.TempDir(), zap.NewNop())
	var all []Statement
	for i := range MaxStatements + 100 {
		all = append(all, Statement{ID: testKeyID(t), Denied: i >= 200, At: time.Now().Add(time.Duration(i) * time.Second)})
	}
	d.take(append(all, Statement{ID: "nobody", Denied: true, At: time.Now()}, Statement{ID: all[0].ID, Denied: true}))
	if len(d.said) != MaxStatements {
		t.Errorf("%d statements are kept", len(d.said))
	}
	for i, s := range all {
		if _, kept := d.said[s.ID]; kept == (i < 100) {
			t.Fatalf("statement %d is kept: %v", i, kept)
		}
	}
	if err := d.save(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(d.path); err != nil || info.Size() > maxHeardFile/2 {
		t.Errorf("%v, %v", info, err)
	}
	if again := loadDenials(filepath.Dir(d.path), zap.NewNop()); !bytes.Equal(HashStatements(again.all()), HashStatements(d.all())) {
		t.Error("the file says other than was saved")
	}
}

// A file that somebody else wrote stops nothing.
func TestHeardFileIsNotTrusted(t *testing.T) {
	for _, content := range []string{"x", "\x00\xff", "nobody denied 2026-12-01T00:00:00Z\n", string(make([]byte, maxHeardFile+1))} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, heardFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if d := loadDenials(dir, zap.NewNop()); len(d.said) != 0 {
			t.Errorf("%.20q: %d statements", content, len(d.said))
		}
	}
}
