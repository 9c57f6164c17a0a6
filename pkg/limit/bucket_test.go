package limit_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/damselfly-p2p/damselfly/pkg/limit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const chunk = 64 << 10

// takers take from a bucket until they are stopped, and count.
type takers struct {
	t      *testing.T
	ctx    context.Context
	stop   context.CancelFunc
	bucket *limit.Bucket
	all    sync.WaitGroup

	mu    sync.Mutex
	taken map[string]int
}

func newTakers(t *testing.T, perSecond int64) *takers {
	s := &takers{t: t, bucket: limit.New(perSecond), taken: map[string]int{}}
	s.ctx, s.stop = context.WithCancel(t.Context())
	return s
}

// start adds one more that takes chunks of n bytes for a party.
func (s *takers) start(c limit.Class, party string, n int) {
	s.all.Go(func() {
		for s.bucket.Wait(s.ctx, c, party, n) == nil {
			s.mu.Lock()
			s.taken[party] += n
			s.mu.Unlock()
		}
	})
}

// over returns what was taken within so long, by party.
func (s *takers) over(d time.Duration) map[string]int {
	before := s.now()
	time.Sleep(d)
	after := s.now()
	for party := range after {
		after[party] -= before[party]
	}
	return after
}

func (s *takers) now() map[string]int {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]int{}
	for party, n := range s.taken {
		out[party] = n
	}
	return out
}

func (s *takers) end() {
	s.stop()
	s.all.Wait()
}

func (s *takers) near(what string, got int, want, tolerance float64) {
	s.t.Helper()
	if math.Abs(float64(got)-want) > want*tolerance {
		s.t.Errorf("%s: %d bytes, want %.0f", what, got, want)
	}
}

// What is taken is what the limit says, whatever it is and in whatever portions.
func TestRate(t *testing.T) {
	for _, perSecond := range []int64{100e3, 12.5e6, 1e9, 10e9} {
		for _, n := range []int{7000, chunk, 3 << 20} {
			synctest.Test(t, func(t *testing.T) {
				s := newTakers(t, perSecond)
				defer s.end()
				for range 3 {
					s.start(limit.Client, "", n)
				}
				span := max(time.Duration(200*float64(n)/float64(perSecond)*float64(time.Second)), 100*time.Millisecond)
				_ = s.over(span)
				s.near("later", s.over(span)[""], float64(perSecond)*span.Seconds(), 0.03)
			})
		}
	}
}

// An idle bucket saves up little: 20 ms of its limit.
func TestBurstIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTakers(t, 100e6)
		defer s.end()
		time.Sleep(time.Hour)
		s.start(limit.Client, "", chunk)
		if got := float64(s.over(10 * time.Millisecond)[""]); got > 1e6+2e6+chunk {
			t.Errorf("%.0f bytes in the first 10 ms", got)
		}
	})
}

// While clients wait the others get a sixteenth of the limit each; without clients
// preheat comes before background in the same way; and who is alone gets everything.
func TestClasses(t *testing.T) {
	const perSecond = 10e6
	synctest.Test(t, func(t *testing.T) {
		s := newTakers(t, perSecond)
		defer s.end()
		s.start(limit.Background, "background", chunk)
		s.near("background alone", s.over(5 * time.Second)["background"], 5*perSecond, 0.03)
		s.start(limit.Preheat, "preheat", chunk)
		s.start(limit.Preheat, "preheat", chunk)
		got := s.over(5 * time.Second)
		s.near("preheat beside background", got["preheat"], 5*perSecond*15/16, 0.02)
		s.near("background beside preheat", got["background"], 5*perSecond/16, 0.1)
		s.start(limit.Client, "client", chunk)
		s.start(limit.Client, "client", chunk)
		got = s.over(5 * time.Second)
		s.near("client", got["client"], 5*perSecond*14/16, 0.05)
		s.near("preheat beside client", got["preheat"], 5*perSecond/16, 0.2)
		s.near("background beside client", got["background"], 5*perSecond/16, 0.2)
	})
}

// Those who wait are served by class, not in the order in which they came.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := limit.New(1e6)
		_ = b.Wait(t.Context(), limit.Client, "", chunk) // what was saved up
		var mu sync.Mutex
		var order []limit.Class
		var all sync.WaitGroup
		for _, c := range []limit.Class{limit.Background, limit.Preheat, limit.Client, limit.Preheat, limit.Client} {
			all.Go(func() {
				if err := b.Wait(t.Context(), c, "", 32<<10); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, c)
			})
			synctest.Wait()
		}
		all.Wait()
		if want := []limit.Class{limit.Client, limit.Client, limit.Preheat, limit.Preheat, limit.Background}; !slices.Equal(order, want) {
			t.Errorf("served %v, want %v", order, want)
		}
	})
}

// Parties share alike, however many waiters each has and how much each asks for.
func TestPartiesShare(t *testing.T) {
	const perSecond = 4e6
	synctest.Test(t, func(t *testing.T) {
		s := newTakers(t, perSecond)
		defer s.end()
		for range 8 {
			s.start(limit.Client, "greedy", 256<<10)
		}
		s.near("alone", s.over(5 * time.Second)["greedy"], 5*perSecond, 0.05)
		s.start(limit.Client, "modest", 64<<10)
		s.start(limit.Client, "modest", 64<<10)
		got := s.over(5 * time.Second)
		s.near("greedy", got["greedy"], 2.5*perSecond, 0.05)
		s.near("modest", got["modest"], 2.5*perSecond, 0.05)
	})
}

// Who is cancelled leaves at once, with the cause, and costs the others nothing.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, why := limit.New(100e3), errors.New("recalled")
		_ = b.Wait(t.Context(), limit.Client, "", chunk)
		ctx, cancel := context.WithCancelCause(t.Context())
		left := make(chan error, 1)
		started := time.Now()
		go func() { left <- b.Wait(ctx, limit.Client, "a", 10<<20) }() // 105 s
		stayed := make(chan error, 1)
		go func() {
			synctest.Wait()
			stayed <- b.Wait(t.Context(), limit.Background, "b", 500e3)
		}()
		time.Sleep(4 * time.Second)
		cancel(why)
		if err := <-left; !errors.Is(err, why) {
			t.Errorf("the cancelled waiter got %v", err)
		}
		if d := time.Since(started); d != 4*time.Second {
			t.Errorf("it left after %v", d)
		}
		if err := <-stayed; err != nil {
			t.Error(err)
		}
		// What the one was given before it left is the other's, but a burst at most.
		if d := time.Since(started); d < 4*time.Second || d > 8500*time.Millisecond {
			t.Errorf("the other was served after %v", d)
		}
		if err := b.Wait(ctx, limit.Client, "a", 1); !errors.Is(err, why) {
			t.Errorf("with an ended context: %v", err)
		}
	})
}

// Cancelled waiters do not make more of the limit: all that others take stays in it.
func TestCancelMakesNoTokens(t *testing.T) {
	const perSecond = 1e6
	synctest.Test(t, func(t *testing.T) {
		s := newTakers(t, perSecond)
		defer s.end()
		s.start(limit.Client, "", chunk)
		s.all.Go(func() {
			for s.ctx.Err() == nil {
				ctx, cancel := context.WithTimeout(s.ctx, 5*time.Millisecond)
				_ = s.bucket.Wait(ctx, limit.Client, "fickle", 10<<20)
				cancel()
			}
		})
		_ = s.over(time.Second)
		s.near("beside fickle waiters", s.over(5 * time.Second)[""], 5*perSecond, 0.05)
	})
}

// A new limit holds for those who wait already.
func TestSetWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTakers(t, 64e3)
		defer s.end()
		s.start(limit.Client, "", 1<<20)
		_ = s.over(time.Second)
		s.bucket.Set(50e6)
		s.near("raised", s.over(5 * time.Second)[""], 250e6, 0.03)
		s.bucket.Set(5e6)
		s.near("lowered", s.over(5 * time.Second)[""], 25e6, 0.05)
		if got := s.bucket.Limit(); got != 5e6 {
			t.Errorf("the limit is %d", got)
		}

		waits := make(chan error, 1)
		s.bucket.Set(1)
		go func() { waits <- s.bucket.Wait(t.Context(), limit.Background, "b", 1<<30) }()
		time.Sleep(time.Minute)
		started := time.Now()
		s.stop()
		s.bucket.Set(0)
		if err := <-waits; err != nil || time.Since(started) > 0 {
			t.Errorf("without a limit a waiter waited %v, %v", time.Since(started), err)
		}
		if got := s.bucket.Limit(); got != 0 {
			t.Errorf("the limit is %d", got)
		}
	})
}

// The class of a piece of work travels with its context.
func TestClassOf(t *testing.T) {
	ctx := t.Context()
	if limit.With(ctx, limit.Client) != ctx || limit.ClassOf(ctx) != limit.Client {
		t.Error("work is not a client's by default")
	}
	if c := limit.ClassOf(limit.With(ctx, limit.Background)); c != limit.Background {
		t.Errorf("class %d", c)
	}
}

// The time that a limit takes does not count in a timeout; all other time does.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow, b := errors.New("too slow"), limit.New(100e3)
		ctx, cancel := limit.WithTimeout(t.Context(), 2*time.Second, slow)
		defer cancel()
		inner, stop := context.WithCancel(ctx)
		defer stop()
		for range 3 {
			time.Sleep(600 * time.Millisecond)
			if err := b.Wait(limit.With(inner, limit.Preheat), limit.Preheat, "", 1e6); err != nil { // 10 s
				t.Fatal(err)
			}
		}
		time.Sleep(199 * time.Millisecond)
		if ctx.Err() != nil {
			t.Error("it ended early")
		}
		started := time.Now()
		<-inner.Done()
		if d := time.Since(started); d != time.Millisecond || !errors.Is(context.Cause(inner), slow) {
			t.Errorf("it ended after %v, %v", d, context.Cause(inner))
		}

		ctx, cancel = limit.WithTimeout(t.Context(), time.Second, slow)
		cancel()
		if !errors.Is(context.Cause(ctx), context.Canceled) {
			t.Errorf("cancelled: %v", context.Cause(ctx))
		}
	})
}

func BenchmarkWait(b *testing.B) {
	for _, c := range []struct {
		name   string
		bucket *limit.Bucket
	}{{"nil", nil}, {"unlimited", limit.New(0)}, {"within", limit.New(1 << 50)}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.bucket.Wait(b.Context(), limit.Client, "", chunk); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
