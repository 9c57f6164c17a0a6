package control_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/control"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func withSeed(d *damselflyv1.Decision, seed string) *damselflyv1.Decision {
	d.GetSchedulers().Seeds = []*damselflyv1.Holder{{Node: seed, Address: seed + ":1"}}
	return d
}

// A node that was restarted finds the seeds though no scheduler answers, and the
// schedulers that it had been told of though its starting point is gone.
func TestRememberedMembersAreUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b")
		c.kill("a", true)
		c.kill("b", true)
		s, _ := newSetOf(t, c, control.Config{Schedulers: []string{"a:1"}, Remembered: control.Known{
			Schedulers: []control.Holder{{ID: "a", Address: "a:1"}, {ID: "b", Address: "b:1"}},
			Seeds:      []control.Holder{{ID: "s", Address: "s:1"}},
		}})
		<-time.After(time.Second)
		if seeds := s.Seeds(); len(seeds) != 1 || seeds[0].ID != "s" {
			t.Fatalf("the seeds are %v", seeds)
		}
		if since, away := s.Away(); !away || time.Since(since) != time.Second {
			t.Fatalf("away since %v, %v", since, away)
		}
		c.kill("b", false)
		c.at("b").accept(t, withSeed(who("b"), "t"))
		if seeds := s.Seeds(); len(seeds) != 1 || seeds[0].ID != "t" {
			t.Fatalf("told anew, the seeds are %v", seeds)
		}
		if _, away := s.Away(); away {
			t.Error("it answers, and is away")
		}
	})
}

// What schedulers tell is handed out to be kept, whenever it changes; a scheduler that
// has just started and knows no seed yet does not make the node forget them.
func TestLearnedMembersAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b")
		var told []control.Known
		newSetOf(t, c, control.Config{Schedulers: []string{"a:1"}, Learned: func(k control.Known) { told = append(told, k) }})
		st := c.at("a").accept(t, withSeed(who("a", "b"), "s"))
		c.at("b").accept(t, withSeed(who("a", "b"), "s"))
		synctest.Wait()
		want := control.Known{Schedulers: []control.Holder{{ID: "a", Address: "a:1"}, {ID: "b", Address: "b:1"}}, Seeds: []control.Holder{{ID: "s", Address: "s:1"}}}
		if last := told[len(told)-1]; !slices.Equal(last.Schedulers, want.Schedulers) || !slices.Equal(last.Seeds, want.Seeds) {
			t.Fatalf("told %v", told)
		}
		n := len(told)
		st.decide(withSeed(who("a", "b"), "s"))
		st.decide(who("a", "b"))
		if len(told) != n {
			t.Errorf("told again: %v", told[n:])
		}
		st.decide(withSeed(who("a", "b"), "u"))
		if last := told[len(told)-1]; len(last.Seeds) != 1 || last.Seeds[0].ID != "u" {
			t.Errorf("after a change told %v", told)
		}
	})
}
