package identity

import (
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

func publicOf(t testing.TB, key Key) ed25519.PublicKey {
	t.Helper()
	public, ok := key.Private().Public().(ed25519.PublicKey)
	if !ok {
		t.Fatalf("public key is a %T", key.Private().Public())
	}
	return public
}

func TestKeyIsNamedAsLibp2pNamesIt(t *testing.T) {
	key := testKey(t)
	public, err := crypto.UnmarshalEd25519PublicKey(publicOf(t, key))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.Decode(key.ID())
	if err != nil {
		t.Fatal(err)
	}
	if !id.MatchesPublicKey(public) {
		t.Fatalf("libp2p does not take %s as the ID of the key", key.ID())
	}
	if !strings.HasPrefix(key.ID(), "12D3KooW") {
		t.Fatalf("ID %s is not in the form that other libp2p programs show", key.ID())
	}
}

func TestKeyStaysAndIsSecret(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	first, err := LoadOrCreateKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreateKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	if first.ID() != second.ID() {
		t.Fatalf("key changed from %s to %s", first.ID(), second.ID())
	}
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("key file has mode %04o", info.Mode().Perm())
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Fatalf("left %d files behind, want the key alone", len(entries))
	}
	for _, printed := range []string{fmt.Sprint(first), fmt.Sprintf("%+v", first), fmt.Sprintf("%#v", first)} {
		if printed != "key of "+first.ID() {
			t.Fatalf("key prints as %q", printed)
		}
	}
}

func TestProcessesAgreeOnOneKey(t *testing.T) {
	dir := t.TempDir()
	ids := concurrently(t, 16, func() (string, error) {
		key, err := LoadOrCreateKey(dir)
		return key.ID(), err
	})
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("got two keys, %s and %s", ids[0], id)
		}
	}
}

// concurrently calls f n times at once and returns what it returned.
func concurrently(t *testing.T, n int, f func() (string, error)) []string {
	t.Helper()
	results := make([]string, n)
	errs := make([]error, n)
	start := make(chan struct{})
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			<-start
			results[i], errs[i] = f()
		})
	}
	close(start)
	group.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return results
}

func TestKeyThatCannotBeUsedIsKept(t *testing.T) {
	for name, content := range map[string]string{
		"empty":     "",
		"not PEM":   "hello",
		"not a key": "-----BEGIN PRIVATE KEY-----\naGVsbG8=\n-----END PRIVATE KEY-----\n",
		"an ECDSA key": `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgevZzL1gdAFr88hb2
OF/2NxApJCzGCEDdfSp6VQO30hyhRANCAAQRWz+jn65BtOMvdyHKcvjBeBSDZH2r
1RTwjmYSi9R/zpBnuQ4EiMnCqfMPWiZqB4QdbAd0E7oH50VpuZ1P087G
-----END PRIVATE KEY-----
`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, keyFile)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadOrCreateKey(dir); err == nil || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %v does not say which file is bad", err)
			}
			after, err := os.ReadFile(path)
			if err != nil || string(after) != content {
				t.Fatalf("the file was changed to %q (%v)", after, err)
			}
		})
	}
}

func TestKeyThatOthersCanRead(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadOrCreateKey(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, keyFile)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateKey(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatalf("a key that everybody can read gave %v", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateKey(dir); err != nil {
		t.Fatalf("a key with group bits from a volume manager gave %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("group bits stayed: %v, %v", info.Mode(), err)
	}
}

func TestCreateNeverReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for i, content := range []string{"first", "second"} {
		created, err := createFile(path, []byte(content))
		if err != nil || created != (i == 0) {
			t.Fatalf("try %d: created %v, %v", i, created, err)
		}
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "first" {
		t.Fatalf("the file holds %q, %v", content, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Fatalf("left files behind: %v, %v", entries, err)
	}
}
