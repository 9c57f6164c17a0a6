package fabric

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// envChild has this program make a network, say how it is named, and be killed.
const envChild = "FABRIC_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(envChild) == "" {
		os.Exit(m.Run())
	}
	f, err := New(context.Background())
	if err == nil {
		_, err = f.Add("a", Link{rate, rate})
	}
	if err != nil {
		os.Exit(1)
	}
	_, _ = os.Stdout.WriteString(f.prefix)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// Clean removes what a dead process left, and nothing of a living one.
func TestClean(t *testing.T) {
	f := newFabric(t)
	mine := port(t, f, "mine", Link{})
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), envChild+"=1")
	out, err := child.Output()
	if err == nil || len(out) == 0 {
		t.Fatalf("the child said %q and was not killed: %v", out, err)
	}
	left := ours(t, string(out))
	if len(left) != 2 {
		t.Fatalf("the child left %v, want two namespaces", left)
	}
	// As of one that was killed in the middle of Add.
	if err := os.WriteFile(filepath.Join(named, string(out)+"b"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	left = append(left, string(out)+"b")
	removed, err := Clean()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range left {
		if !strings.Contains(strings.Join(removed, " "), name) {
			t.Errorf("%s was not removed", name)
		}
	}
	if left := ours(t, string(out)); len(left) > 0 {
		t.Errorf("of the child there is still %v", left)
	}
	l, err := mine.Listen(t.Context(), "tcp", net.JoinHostPort(mine.Addr().String(), "0"))
	if err != nil {
		t.Fatalf("the living network was harmed: %v", err)
	}
	l.Close()
}
