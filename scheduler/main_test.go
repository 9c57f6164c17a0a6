package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// command runs the scheduler's command line and returns what it printed.
func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestTokens(t *testing.T) {
	dir := t.TempDir()
	token, err := command(t, "token", "create", "--state-dir", dir, "--role", "seed", "--uses", "3", "--ttl", "1h")
	if err != nil {
		t.Fatal(err)
	}
	note, token, _ := strings.Cut(token, "\n")
	if !strings.Contains(note, "new cluster in "+dir) {
		t.Errorf("making a token where no cluster was said %q", note)
	}
	parsed, err := identity.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	list, err := command(t, "token", "list", "--state-dir", dir)
	if err != nil || !strings.Contains(list, parsed.ID) || !strings.Contains(list, "seed") {
		t.Fatalf("the list is %q, %v", list, err)
	}
	if secret := token[strings.LastIndex(token, ".")+1:]; strings.Contains(list, strings.TrimSpace(secret)) {
		t.Error("the list shows the token's secret")
	}
	raw, err := command(t, "token", "list", "--state-dir", dir, "-o", "json")
	var infos []identity.TokenInfo
	if err != nil || json.Unmarshal([]byte(raw), &infos) != nil || len(infos) != 1 || infos[0].Uses != 3 {
		t.Fatalf("as JSON the list is %q, %v", raw, err)
	}
	if _, err := command(t, "token", "revoke", parsed.ID, "--state-dir", dir); err != nil {
		t.Fatal(err)
	}
	if list, _ := command(t, "token", "list", "--state-dir", dir); strings.Contains(list, parsed.ID) {
		t.Errorf("after its end the token is still listed: %q", list)
	}
}

// A mistyped --state-dir is an error, not a second cluster.
func TestOtherStateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "typo")
	id := "12D3KooWNTbRwK74TD8WkkhrLpamPyNojepFiCHTMPJnkMGGSKCZ"
	for _, args := range [][]string{{"token", "list"}, {"token", "revoke", "0123456789abcdef"}, {"node", "deny", id}, {"node", "allow", id}} {
		if out, err := command(t, append(args, "--state-dir", dir)...); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v: got %q and %v", args, out, err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory was made: %v", err)
	}
}

func TestBadUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	file := filepath.Join(t.TempDir(), "s.yaml")
	if err := os.WriteFile(file, []byte("stateDir: /tmp/x\nlisen: :1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"two schedulers, one token": {[]string{"token", "create", "--role", "scheduler", "--uses", "2"}, "one use"},
		"scheduler, for long":       {[]string{"token", "create", "--role", "scheduler", "--ttl", "25h"}, "24h"},
		"gossip by name":            {[]string{"serve", "--gossip-listen", "localhost:65008"}, "localhost"},
		"join nowhere":              {[]string{"serve", "--join", "first"}, "join"},
		"advertise everything":      {[]string{"serve", "--advertise", "0.0.0.0"}, "advertise"},
		"token for nobody":          {[]string{"serve", "--join-token-file", "/no/such/token"}, "joinCluster"},
		"token that is not there":   {[]string{"serve", "--join-cluster", "127.0.0.1:1", "--join-token-file", "/no/such/token"}, "/no/such/token"},
		"no token":                  {[]string{"serve", "--join-cluster", "127.0.0.1:1"}, "token create --role scheduler"},
		"no such role":              {[]string{"token", "create", "--role", "boss"}, "boss"},
		"no uses":                   {[]string{"token", "create", "--uses", "0"}, "use"},
		"port in use":               {[]string{"serve", "--listen", taken.Addr().String(), "--ops-listen", ""}, taken.Addr().String()},
		"unknown key":               {[]string{"serve", "--config", file}, file + ":2"},
		"no such file":              {[]string{"serve", "--config", "/no/such/file.yaml"}, "/no/such/file.yaml"},
		"trace that cannot be":      {[]string{"serve", "--trace", "/no/such/dir/trace", "--ops-listen", ""}, "/no/such/dir/trace"},
		"output":                    {[]string{"token", "list", "-o", "xml"}, "xml"},
		"argument too many":         {[]string{"serve", "now"}, "now"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := command(t, append(c.args, "--state-dir", t.TempDir())...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q and error %v, want one that names %s", out, err, c.want)
			}
		})
	}
}

func TestServeStopsWithoutError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	root := newRoot()
	root.SetArgs([]string{"serve", "--listen", "127.0.0.1:0", "--ops-listen", "", "--state-dir", t.TempDir()})
	var out bytes.Buffer
	root.SetErr(&out)
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve ended with %v\n%s", err, &out)
	}
}

func TestSettingsAreDocumented(t *testing.T) {
	c := DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if missing, err := config.Undocumented(&c); err != nil || len(missing) > 0 {
		t.Errorf("settings without documentation: %v %v", missing, err)
	}
}
