package control_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/damselfly-p2p/damselfly/pkg/control"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// watched attends schedulers and returns what is logged from info on.
func watched(t *testing.T, c *cluster, cfg control.Config) *observer.ObservedLogs {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	cfg.Attend, cfg.Waiting = &damselflyv1.Attend{Address: "127.0.0.1:1", UploadSlots: 2, DownloadSlots: 2}, idly
	s := control.New(cfg, c, zap.New(core))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, &recorder{}) }()
	t.Cleanup(func() { cancel(); <-done })
	return logs
}

// levels counts entries.
func levels(logs *observer.ObservedLogs) map[zapcore.Level]int {
	out := map[zapcore.Level]int{}
	for _, e := range logs.TakeAll() {
		out[e.Level]++
	}
	return out
}

// A scheduler that is away for three hours is told of a dozen times, not six thousand,
// at once when it goes, and once when it is back.
func TestOutageIsLoggedAtGrowingIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a")
		logs := watched(t, c, control.Config{Schedulers: []string{"a:1"}})
		st := c.at("a").accept(t, who("a"))
		if n := levels(logs); n[zapcore.WarnLevel] != 0 || n[zapcore.InfoLevel] != 1 {
			t.Fatalf("attending was logged as %v", n)
		}
		c.kill("a", true)
		close(st.down)
		<-time.After(300 * time.Millisecond)
		if n := levels(logs); n[zapcore.WarnLevel] != 1 {
			t.Fatalf("within 300 ms of the end %v was logged", n)
		}
		<-time.After(3 * time.Hour)
		if n := levels(logs); n[zapcore.WarnLevel] < 15 || n[zapcore.WarnLevel] > 22 {
			t.Fatalf("in three hours %v was logged", n)
		}
		c.kill("a", false)
		c.at("a").accept(t, who("a"))
		got := logs.TakeAll()
		if len(got) != 1 || got[0].Level != zapcore.InfoLevel {
			t.Fatalf("its return was logged as %v", got)
		}
		if away := got[0].ContextMap()["away"].(time.Duration); away < 3*time.Hour || away > 3*time.Hour+time.Minute {
			t.Errorf("it was away for %v, says the log", away)
		}
	})
}

// Streams that are welcomed and end within seconds, for an hour, are one trouble.
func TestFlappingStreamsAreOneOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a")
		logs := watched(t, c, control.Config{Schedulers: []string{"a:1"}})
		for began := time.Now(); time.Since(began) < time.Hour; {
			st := c.at("a").accept(t, who("a"))
			<-time.After(1700 * time.Millisecond)
			close(st.down)
		}
		if n := levels(logs); n[zapcore.WarnLevel] > 12 || n[zapcore.InfoLevel] > 12 {
			t.Errorf("an hour of flapping was logged as %v", n)
		}
	})
}

// What comes an hour later is a new trouble, and logged at once.
func TestNextOutageIsLoggedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a")
		logs := watched(t, c, control.Config{Schedulers: []string{"a:1"}})
		for range 2 {
			st := c.at("a").accept(t, who("a"))
			<-time.After(time.Hour)
			synctest.Wait()
			logs.TakeAll()
			c.kill("a", true)
			close(st.down)
			<-time.After(30 * time.Minute)
			if n := levels(logs); n[zapcore.WarnLevel] < 4 {
				t.Fatalf("an outage of half an hour was logged as %v", n)
			}
			c.kill("a", false)
		}
	})
}
