package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/node"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

const pieceLength = blob.MinPieceLength

// kept is a node's directory with a whole blob, a pinned one and a part.
type kept struct {
	dir                 string
	whole, pinned, part *storetest.Content
}

func newKept(t *testing.T) *kept {
	t.Helper()
	// The path is too long for a socket, so that the way around that is used.
	k := &kept{dir: filepath.Join(t.TempDir(), strings.Repeat("long", 25))}
	k.whole, k.pinned, k.part = storetest.Random(t, 1, 3*pieceLength), storetest.Random(t, 2, 1000), storetest.Random(t, 3, 4*pieceLength)
	s, err := store.Open(store.Config{Dir: node.StoreDir(k.dir)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, s, k.whole)
	storetest.Fill(t, s, k.pinned)
	b, err := s.Create(k.part.Digest, k.part.Size())
	if err == nil {
		err = b.Extend(0, k.part.Piece(0))
		b.Release()
	}
	if err == nil {
		err = s.Pin(k.pinned.Digest)
	}
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// start runs a daemon with it until the test ends.
func (k *kept) start(t *testing.T) {
	t.Helper()
	cfg := node.DefaultConfig()
	cfg.DataDir, cfg.Mirror.Listen, cfg.Ops.Listen = k.dir, "127.0.0.1:0", ""
	cfg.Store.KeepFree = 0  // the disk of the machine decides nothing here
	cfg.Store.ScrubRate = 0 // a pass of its own would find what a test rots before the test looks
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- node.Run(ctx, cfg, identity.RoleNode, zap.NewNop()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
	})
	for {
		c, err := node.DialCache(t.Context(), k.dir)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case err := <-done:
			done <- err
			t.Fatal(err)
		default:
		}
	}
}

func (k *kept) cache(t *testing.T, args ...string) result {
	t.Helper()
	return dfget(t, append([]string{"cache", "--data-dir", k.dir}, args...)...)
}

// both runs a test on the directory, and on a daemon.
func both(t *testing.T, test func(t *testing.T, k *kept)) {
	t.Run("no daemon", func(t *testing.T) { test(t, newKept(t)) })
	t.Run("daemon", func(t *testing.T) {
		k := newKept(t)
		k.start(t)
		test(t, k)
	})
}

func (k *kept) rot(t *testing.T, c *storetest.Content, off int64) {
	t.Helper()
	path := filepath.Join(node.StoreDir(k.dir), "v1", c.Digest.Algorithm(), c.Digest.Hex()[:2], c.Digest.Hex())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt([]byte{c.Data[off] ^ 1}, off)
	}
	if err == nil { // as a disk rots: the file system knows of no change
		err = os.Chtimes(path, info.ModTime(), info.ModTime())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestCacheList(t *testing.T) {
	both(t, func(t *testing.T, k *kept) {
		r := k.cache(t, "ls")
		r.want(t, exitOK, "DIGEST", short(k.whole.Digest), "768.0 KiB")
		for _, line := range []string{
			short(k.whole.Digest) + ` +768.0 KiB +100 % +whole +(now|\d+ seconds ago)`,
			short(k.pinned.Digest) + ` +1000 B +100 % +whole, pinned `,
			short(k.part.Digest) + ` +1.0 MiB +25 % +part `,
		} {
			if !regexp.MustCompile(line).MatchString(r.out) {
				t.Errorf("no line is like %q:\n%s", line, r.out)
			}
		}
		if first := strings.Split(r.out, "\n")[1]; !strings.HasPrefix(first, short(k.pinned.Digest)) {
			t.Errorf("the last used is not first:\n%s", r.out)
		}
		k.cache(t, "ls", "--no-trunc").want(t, exitOK, k.whole.Digest.String()+" ")
		if got := k.cache(t, "ls", "-q").out; len(strings.Fields(got)) != 3 || !strings.Contains(got, k.part.Digest.String()+"\n") {
			t.Errorf("ls -q prints %q", got)
		}
		var list []node.CacheBlob
		if err := json.Unmarshal([]byte(k.cache(t, "ls", "--json").out), &list); err != nil || len(list) != 3 ||
			list[0].Digest != k.pinned.Digest || !list[0].Pinned || !list[0].Whole || list[0].Held != 1000 {
			t.Errorf("JSON %+v, error %v", list, err)
		}
	})
}

func TestCacheStats(t *testing.T) {
	both(t, func(t *testing.T, k *kept) {
		k.cache(t, "stats").want(t, exitOK, "3: 2 whole, 1 in part; 1 pinned, 0 in use", "1.8 MiB set aside; 1.8 MiB can be evicted", "1.0 MiB, of which", " free of ")
		var st cacheStats
		if err := json.Unmarshal([]byte(k.cache(t, "stats", "--json").out), &st); err != nil {
			t.Fatal(err)
		}
		if st.Bytes != 7*pieceLength+1000 || st.Held != 4*pieceLength+1000 || st.Free != 7*pieceLength || st.Disk.Bytes <= st.Disk.Free || st.Disk.Free <= 0 {
			t.Errorf("stats %+v", st)
		}
		if _, told := st.Counters["damselfly_pulls_total/hit"]; told != st.Daemon {
			t.Errorf("daemon %v, counters %v", st.Daemon, st.Counters)
		}
	})
}

func TestCacheRemove(t *testing.T) {
	both(t, func(t *testing.T, k *kept) {
		k.cache(t, "rm", "sha256:"+strings.Repeat("0", 64)).want(t, exitNotFound, "no such blob", "cache ls")
		k.cache(t, "rm", k.whole.Digest.Hex()[:9]).want(t, exitOK, "removed 1 blob, 768.0 KiB")
		k.cache(t, "rm", k.whole.Digest.String()).want(t, exitNotFound, "no such blob")
		k.cache(t, "rm", "--unpinned").want(t, exitOK, "removed 1 blob, 1.0 MiB")
		k.cache(t, "ls", "-q").want(t, exitOK, k.pinned.Digest.String())
		var results []node.CacheResult
		r := k.cache(t, "rm", "--all", "--json")
		if err := json.Unmarshal([]byte(r.out), &results); err != nil || r.code != exitOK || len(results) != 1 || results[0].Bytes != 1000 {
			t.Errorf("JSON %+v, error %v", results, err)
		}
		if left := k.cache(t, "ls", "-q").out; left != "" {
			t.Errorf("%q is left", left)
		}
		k.cache(t, "rm", "--all").want(t, exitOK, "removed 0 blobs")
	})
}

func TestCacheRemoveSparesWhatIsInUse(t *testing.T) {
	k := newKept(t)
	s, err := store.Open(store.Config{Dir: node.StoreDir(k.dir)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, _ := s.Get(k.whole.Digest)
	defer b.Release()
	c := node.NewCache(s, k.dir, nil)
	for _, force := range []bool{false, true} {
		results, err := c.Remove(t.Context(), []blob.Digest{k.whole.Digest, k.part.Digest}, force)
		if err != nil || len(results) != 2 || (results[0].Kind == node.CacheInUse) == force || (results[1].Error == "") == force {
			t.Errorf("force %v: %+v, error %v", force, results, err)
		}
		out, errOut := &lockedBuffer{}, &lockedBuffer{}
		err = (&cacheOptions{}).report(&process{Out: out, Err: errOut}, results, removed)
		if err == nil || !force && (!strings.Contains(errOut.String(), "--force") || !strings.Contains(out.String(), "removed 1 blob, 1.0 MiB")) {
			t.Errorf("force %v: error %v, prints %s%s", force, err, out, errOut)
		}
	}
}

func TestCachePin(t *testing.T) {
	both(t, func(t *testing.T, k *kept) {
		k.cache(t, "pin", k.whole.Digest.String(), short(k.part.Digest)).want(t, exitOK, "pinned 2 blobs")
		k.cache(t, "stats").want(t, exitOK, "3 pinned")
		k.cache(t, "unpin", k.pinned.Digest.Hex()).want(t, exitOK, "unpinned 1 blob")
		k.cache(t, "stats").want(t, exitOK, "2 pinned")
		k.cache(t, "rm", "--unpinned").want(t, exitOK, "removed 1 blob, 1000 B")
	})
}

func TestCacheVerify(t *testing.T) {
	both(t, func(t *testing.T, k *kept) {
		k.cache(t, "verify").want(t, exitOK, "proved 3 blobs, 1.0 MiB: 0 with rot")
		k.rot(t, k.whole, pieceLength+1)
		k.cache(t, "verify", short(k.pinned.Digest)).want(t, exitOK, "proved 1 blob, 1000 B")
		r := k.cache(t, "verify")
		r.want(t, exitOther, k.whole.Digest.String()+": 1 of 3 pieces rotten", "1 with rot")
		if r.errOut != "" {
			t.Errorf("standard error: %s", r.errOut)
		}
		k.cache(t, "ls").want(t, exitOK, "66 %")
		k.cache(t, "verify").want(t, exitOK, "proved 3 blobs", "0 with rot")
		k.rot(t, k.pinned, 7)
		var results []node.CacheResult
		r = k.cache(t, "verify", "--json", k.pinned.Digest.Hex())
		if err := json.Unmarshal([]byte(r.out), &results); err != nil || r.code != exitOther || len(results) != 1 || results[0].Rotten != 1 {
			t.Errorf("exit code %d, JSON %+v, error %v", r.code, results, err)
		}
	})
}

func TestCacheMisuse(t *testing.T) {
	k := newKept(t)
	a, b := k.whole.Digest.Hex(), k.pinned.Digest.Hex()
	if a[0] == b[0] {
		t.Fatal("choose other blobs: these begin with the same digit")
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"rm"}, exitUsage, "--all or --unpinned"},
		{[]string{"rm", a, "--all"}, exitUsage, "only one"},
		{[]string{"rm", "--unpinned", "--all"}, exitUsage, "only one"},
		{[]string{"rm", "sha256:"}, exitUsage, "names no blob"},
		{[]string{"rm", "../../etc"}, exitUsage, "names no blob"},
		{[]string{"rm", "sha512:" + a}, exitNotFound, "no such blob"},
		{[]string{"pin"}, exitUsage, "no blob is named"},
		{[]string{"ls", "x"}, exitUsage, "not expected"},
		{[]string{"verify", "nope!"}, exitUsage, "names no blob"},
		{[]string{"prune"}, exitUsage, "no command"},
		{[]string{"ls", "--data-dir", filepath.Join(k.dir, "none")}, exitOther, "--data-dir"},
	} {
		r := k.cache(t, c.args...)
		if r.code != c.code || !strings.Contains(r.errOut, c.says) {
			t.Errorf("dfget cache %s\nexit code %d, stderr: %swant code %d and %q", strings.Join(c.args, " "), r.code, r.errOut, c.code, c.says)
		}
	}
	if left := names(t, k.dir); len(left) < 6 {
		t.Errorf("misuse removed something: %v", left)
	}
	if _, err := os.Stat(filepath.Join(k.dir, "none")); err == nil {
		t.Error("a store was made where none is")
	}
}

func TestAmbiguousPrefix(t *testing.T) {
	blobs := []node.CacheBlob{{Digest: "sha256:" + blob.Digest(strings.Repeat("a", 64))}, {Digest: "sha256:" + blob.Digest(strings.Repeat("a", 63)+"b")}}
	if _, err := resolve(blobs, []string{"aaa"}); err == nil || !strings.Contains(err.Error(), "2 blobs") {
		t.Errorf("error %v", err)
	}
	got, err := resolve(blobs, []string{string(blobs[1].Digest), strings.ToUpper(blobs[1].Digest.Hex())})
	if err != nil || len(got) != 1 || got[0] != blobs[1].Digest {
		t.Errorf("resolved %v, error %v", got, err)
	}
}

// TestCacheOfALockedStore: a daemon that does not answer is not worked around.
func TestCacheOfALockedStore(t *testing.T) {
	k := newKept(t)
	s, err := store.Open(store.Config{Dir: node.StoreDir(k.dir)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	k.cache(t, "ls").want(t, exitOther, "in use by another daemon", "does not answer")
}

// TestCacheSocketIsPrivate: whoever reaches the socket may remove everything.
func TestCacheSocketIsPrivate(t *testing.T) {
	k := newKept(t)
	stale := filepath.Join(k.dir, "control.sock")
	if err := os.WriteFile(stale, nil, 0o600); err != nil { // a node was killed
		t.Fatal(err)
	}
	k.start(t)
	info, err := os.Stat(stale)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
}
