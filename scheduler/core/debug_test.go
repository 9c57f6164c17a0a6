package core

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

func TestDebug(t *testing.T) {
	seed, _ := strconv.Atoi(os.Getenv("SEED"))
	w := troubled(t, uint64(seed), false)
	var last []byte
	w.opt.record = func(now Time, e Event) { last = AppendEvent(last, now, e); last = append(last, '\n') }
	w.check = func() {
		for i := range w.out {
			last = append(AppendDecision(append(last, "   -> "...), &w.out[i]), '\n')
		}
		defer func() {
			if t.Failed() {
				os.WriteFile("/tmp/log.txt", last, 0644)
			}
		}()
		checkState(t, w.s)
	}
	w.flaky()
	w.run(3600 * Second)
	fmt.Println(w.s.Stats())
	os.WriteFile("/tmp/log.txt", last, 0644)
}
