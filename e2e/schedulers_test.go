package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
	"github.com/damselfly-p2p/damselfly/pkg/ring"
)

// several is a cluster of three schedulers, of which seeds and nodes are told one.
type several struct {
	*cluster.Cluster
	origin *origin.Origin
}

func startSeveral(t *testing.T) several {
	t.Helper()
	o := startOrigin(t, origin.Token, false)
	s := several{startConfig(t, o, cluster.Config{Schedulers: 3, Seeds: 1, Nodes: 4}), o}
	s.attended(t)
	return s
}

// live are the schedulers that run, by peer ID.
func (s several) live(t *testing.T) map[string]*cluster.Member {
	t.Helper()
	out := map[string]*cluster.Member{}
	for _, m := range s.Schedulers {
		if !m.Running() {
			continue
		}
		id, err := m.ID()
		if err != nil {
			t.Fatal(err)
		}
		out[id] = m
	}
	return out
}

// owner is the scheduler whose a digest is, among those that run.
func (s several) owner(t *testing.T, digest string) *cluster.Member {
	t.Helper()
	live := s.live(t)
	return live[ring.Owner(digest, ids(live))]
}

func ids(members map[string]*cluster.Member) []string { return slices.Collect(maps.Keys(members)) }

// attended waits until every node and seed attends every scheduler that runs.
func (s several) attended(t *testing.T) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		for _, m := range s.live(t) {
			for state, want := range map[string]int{"node": len(s.Nodes), "seed": len(s.Seeds)} {
				if n, err := m.Gauge(ctx, "damselfly_peers", "state", state); err != nil || int(n) != want {
					return fmt.Errorf("%s is attended by %v of %d (%s), %w", m.Name, n, want, state, err)
				}
			}
		}
		return nil
	})
}

// heard are the digests of which a scheduler has been told such an event.
func heard(m *cluster.Member, event string) (map[string]bool, error) {
	f, err := os.Open(m.Trace)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]bool{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		if words := strings.Fields(lines.Text()); len(words) > 3 && words[1] == event && !strings.HasPrefix(lines.Text(), "\t") {
			out[words[3]] = true
		}
	}
	return out, lines.Err()
}

// checkSpread checks that each layer of an image was wanted from the scheduler that
// owns it, and from no other.
func (s several) checkSpread(t *testing.T, img *sample.Image) {
	t.Helper()
	live := s.live(t)
	eventually(t, func(context.Context) error {
		for id, m := range live {
			wanted, err := heard(m, "want")
			if err != nil {
				return err
			}
			for i, layer := range layerDigests(img) {
				if own := ring.Owner(layer, ids(live)) == id; own != wanted[layer] {
					return fmt.Errorf("%s: layer %d is its own: %v, was wanted from it: %v", m.Name, i, own, wanted[layer])
				}
			}
		}
		return nil
	})
}

// pushOwned pushes an image whose largest layer belongs to a scheduler that which
// accepts.
func (s several) pushOwned(t *testing.T, repository string, which func(*cluster.Member) bool) (img *sample.Image, pushed string) {
	t.Helper()
	for i := range 64 {
		img, err := sample.New(fmt.Sprint(t.Name(), repository, i), sample.Medium(), sample.OCI)
		if err != nil {
			t.Fatal(err)
		}
		if !which(s.owner(t, largest(img).Digest)) {
			continue
		}
		if err := s.origin.Push(t.Context(), img, repository, "v1"); err != nil {
			t.Fatal(err)
		}
		return img, repository
	}
	t.Fatal("of 64 layers none belongs to such a scheduler")
	return nil, ""
}

// checkRatio checks how often the origin sent an image's layers.
func (s several) checkRatio(t *testing.T, img *sample.Image, most float64) {
	t.Helper()
	ratio := float64(s.origin.Counts().Bytes(layerDigests(img)...)) / float64(img.Native.LayerBytes())
	t.Logf("the origin sent %.3f times the layers", ratio)
	if ratio > most {
		t.Errorf("the origin sent %.3f times the layers, want %.2f at most", ratio, most)
	}
}

// TestSchedulers takes one cluster through the life of several schedulers.
func TestSchedulers(t *testing.T) {
	s := startSeveral(t)
	t.Run("share the blobs", s.share)
	t.Run("one joins", s.join)
	t.Run("one is killed", s.kill)
	t.Run("it comes back", s.back)
	t.Run("the first is killed", s.killFirst)
	t.Run("one hangs", s.hang)
	t.Run("a node is denied", s.deny)
}

// share pulls an image: each layer is one scheduler's, and the origin pays once.
func (s several) share(t *testing.T) {
	img := push(t, s.origin, "app/share", sample.Large(), sample.OCI)
	pullAll(t, s.origin, s.Nodes, img, "app/share")
	checkOriginPaidOnce(t, s.origin, img)
	checkNodesReadNoOrigin(t, s.Cluster, img)
	s.checkSpread(t, img)
}

// join adds a scheduler: it is told what is its own, and nothing else.
func (s several) join(t *testing.T) {
	fourth, err := s.AddScheduler(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	s.attended(t)
	img, repository := s.pushOwned(t, "app/join", func(m *cluster.Member) bool { return m == fourth })
	pullAll(t, s.origin, s.Nodes, img, repository)
	checkOriginPaidOnce(t, s.origin, img)
	s.checkSpread(t, img)
	for _, event := range []string{"want", "have"} {
		told, err := heard(fourth, event)
		if err != nil {
			t.Fatal(err)
		}
		for digest := range told {
			if s.owner(t, digest) != fourth {
				t.Errorf("the new scheduler was told %s of %s, which is not its own", event, digest)
			}
		}
	}
}

// kill kills a scheduler half way.
func (s several) kill(t *testing.T) {
	s.lose(t, "app/kill", func(victim *cluster.Member) { victim.Kill() })
}

// hang stops a scheduler half way, and lets it go on when all is over.
func (s several) hang(t *testing.T) {
	var hung *cluster.Member
	s.lose(t, "app/hang", func(victim *cluster.Member) {
		hung = victim
		if err := victim.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	})
	if err := hung.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.attended(t)
}

// lose lets the scheduler of a layer that is half way stop: its heir knows of every
// node within two seconds, and nothing is read twice from the origin.
func (s several) lose(t *testing.T, app string, stop func(*cluster.Member)) {
	img, repository := s.pushOwned(t, app, func(m *cluster.Member) bool { return m != s.Scheduler })
	layer := largest(img)
	victim := s.owner(t, layer.Digest)
	release := make(chan struct{})
	remove := s.origin.Inject(origin.Rule{Match: origin.Blob(layer.Digest), Times: 1, Fault: origin.Hold(layer.Size()/2, release)})
	defer remove()
	done := make(chan error, 1)
	go func() { done <- pullNodes(deadline(t), s.origin, s.Nodes, img, repository) }()
	if err := s.origin.WaitBytes(deadline(t), layer.Digest, layer.Size()/2); err != nil {
		t.Fatal(err)
	}
	for _, m := range s.live(t) { // all the rest is there, or the heir's wants could be of that
		s.waitWants(t, m, map[bool]int{true: len(s.Nodes), false: 0}[m == victim])
	}
	stop(victim)
	stopped := time.Now()
	heirs := s.live(t)
	maps.DeleteFunc(heirs, func(_ string, m *cluster.Member) bool { return m == victim })
	heir := heirs[ring.Owner(layer.Digest, ids(heirs))]
	s.waitWants(t, heir, len(s.Nodes))
	took := time.Since(stopped)
	t.Logf("the heir knew of all wants after %v", took)
	if took > 2*time.Second {
		t.Errorf("the heir knew of all wants after %v, want 2s at most", took)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.checkRatio(t, img, 1.02)
}

// waitWants waits until a scheduler knows of so many wants.
func (s several) waitWants(t *testing.T, m *cluster.Member, want int) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		n, err := m.Gauge(ctx, "damselfly_wants")
		if err == nil && int(n) != want {
			err = fmt.Errorf("%s knows of %v wants, want %d", m.Name, n, want)
		}
		return err
	})
}

// back starts the killed scheduler again, and the cluster works as before.
func (s several) back(t *testing.T) {
	i := slices.IndexFunc(s.Schedulers, func(m *cluster.Member) bool { return !m.Running() })
	if err := s.Schedulers[i].Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	s.attended(t)
	img, repository := s.pushOwned(t, "app/back", func(m *cluster.Member) bool { return m == s.Schedulers[i] })
	pullAll(t, s.origin, s.Nodes, img, repository)
	checkOriginPaidOnce(t, s.origin, img)
	s.checkSpread(t, img)
}

// killFirst kills the only scheduler that nodes and seeds were told of, and that the
// others joined by: all goes on with those that they know from it, and with it when it
// is back.
func (s several) killFirst(t *testing.T) {
	img, repository := s.pushOwned(t, "app/first", func(m *cluster.Member) bool { return m == s.Scheduler })
	s.Scheduler.Kill()
	eventually(t, func(ctx context.Context) error {
		for _, m := range s.live(t) {
			if n, err := m.Gauge(ctx, "damselfly_schedulers"); err != nil || int(n) != len(s.Schedulers)-1 {
				return fmt.Errorf("%s counts %v schedulers, %w", m.Name, n, err)
			}
		}
		return nil
	})
	pullAll(t, s.origin, s.Nodes, img, repository)
	s.checkRatio(t, img, 1.05)
	if err := s.Scheduler.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	s.attended(t)
	again, repository := s.pushOwned(t, "app/again", func(m *cluster.Member) bool { return m == s.Scheduler })
	pullAll(t, s.origin, s.Nodes, again, repository)
	checkOriginPaidOnce(t, s.origin, again)
	s.checkSpread(t, again)
}

// deny shuts a node out at one scheduler: all refuse it.
func (s several) deny(t *testing.T) {
	node := s.Nodes[len(s.Nodes)-1]
	id, err := node.ID()
	if err != nil {
		t.Fatal(err)
	}
	at := s.Schedulers[1]
	if _, err := process.Run(deadline(t), process.Spec{
		Name: "deny", Path: at.Program(), Args: []string{"node", "deny", id, "--config", at.File}, Dir: at.Dir,
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) error {
		for _, m := range s.Schedulers {
			if n, err := m.Gauge(ctx, "damselfly_peers", "state", "node"); err != nil || int(n) != len(s.Nodes)-1 {
				return fmt.Errorf("%s is attended by %v nodes, %w", m.Name, n, err)
			}
		}
		return nil
	})
}
