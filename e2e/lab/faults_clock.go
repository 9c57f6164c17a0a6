package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// A machine's clock is everybody's: no process has one of its own, and a Go program
// does not ask libc, where faketime could answer. So nodes whose clocks jump are built
// with another package time. It adds what a file says to the time of day. Timers are
// left alone, as they are when a real clock is set.

// clockVariable names the file with seconds to add, as text.
const clockVariable = "LAB_CLOCK_FILE"

// What is added to package time. A goroutine looks at the file, for the time of day is
// asked for where no goroutine may wait.
const clockSource = `
var labAhead atomic.Int64

var _ = func() bool {
	file, ok := syscall.Getenv("` + clockVariable + `")
	if ok {
		go func() {
			for ; ; Sleep(50 * Millisecond) {
				labRead(file)
			}
		}()
	}
	return ok
}()

func labRead(file string) {
	fd, err := syscall.Open(file, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer syscall.Close(fd)
	var text [32]byte
	n, err := syscall.Read(fd, text[:])
	if err != nil {
		return
	}
	sign, seconds := int64(1), int64(0)
	for _, c := range text[:n] {
		if c == '-' {
			sign = -1
		} else {
			seconds = seconds*10 + int64(c-'0')
		}
	}
	labAhead.Store(sign * seconds)
}
`

// The places in package time that are changed, each there once.
const (
	clockImports = "import (\n"
	clockNow     = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {\n\t\treturn Time{uint64(nsec), sec + unixToInternal, Local}\n"
)

// buildSkewed builds dfget with that package time.
func (w *world) buildSkewed(ctx context.Context) (program string, err error) {
	root, err := repository(ctx)
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	original := filepath.Join(strings.TrimSpace(string(out)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	text := string(source)
	if strings.Count(text, clockImports) != 1 || strings.Count(text, clockNow) != 1 {
		return "", fmt.Errorf("%s is not as the lab knows it; adapt faults_clock.go to this version of Go", original)
	}
	text = strings.Replace(text, clockImports, clockImports+"\t\"sync/atomic\"\n\t\"syscall\"\n", 1)
	line, rest, _ := strings.Cut(clockNow, "\n")
	text = strings.Replace(text, clockNow, line+"\n\tsec += labAhead.Load()\n"+rest, 1) + clockSource
	dir := filepath.Join(w.dir, "clock")
	changed, overlay, program := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "dfget")
	content, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(changed, []byte(text), 0o644); err != nil {
		return "", err
	}
	if err := os.WriteFile(overlay, content, 0o644); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", program, "./dfget")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build dfget with a clock of its own: %w\n%s", err, out)
	}
	return program, nil
}

// ownClocks starts the last nodes with clocks of their own.
func ownClocks(ctx context.Context, w *world) error {
	program, err := w.buildSkewed(ctx)
	if err != nil {
		return err
	}
	for i := range w.liars {
		name := fmt.Sprintf("%s%d", cluster.Node, w.Nodes+1+i)
		if _, err := w.startGuest(ctx, name, func(m *cluster.Member, s *process.Spec) {
			s.Path, s.Env = program, append(s.Env, clockVariable+"="+clockFile(m))
		}); err != nil {
			return err
		}
	}
	w.note("%d further nodes have clocks of their own; their failures count, their times do not", w.liars)
	return nil
}

func clockFile(m *cluster.Member) string { return filepath.Join(m.Dir, "clock") }

// clocks sets the clocks half way, and has the same nodes pull another image after
// that.
func clocks(ctx context.Context, w *world) error {
	const jump = time.Hour
	guests := w.guestMembers()
	err := w.during(ctx, slices.Concat(w.cluster.Nodes, guests), w.reachHalf, func(context.Context) error {
		for i, m := range guests {
			seconds := int64(jump / time.Second)
			if i%2 == 1 {
				seconds = -seconds
			}
			if err := os.WriteFile(clockFile(m), fmt.Appendf(nil, "%d", seconds), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var slow time.Duration
	for i, m := range guests {
		slow = max(slow, w.nodeTime(m.Name))
		ahead, err := clockOf(ctx, m)
		if err != nil {
			return err
		}
		if i%2 == 1 {
			ahead = -ahead
		}
		w.must((ahead-jump).Abs() < time.Minute, "the clock of %s is off by %v, want %v", m.Name, ahead, jump)
	}
	w.figure("jumped_ratio", over(slow, w.bound()))
	next, err := w.pushMore(ctx, "next")
	if err != nil {
		return err
	}
	start := time.Now()
	w.each(guests, func(_ int, m *cluster.Member) { w.pullImages(ctx, m, []image{next}) })
	w.figure("next_image_seconds", time.Since(start).Seconds())
	w.note("origin_ratio is of two images: %s pulled another afterwards", strings.Join(names(guests), " and "))
	return ctx.Err()
}

func names(members []*cluster.Member) []string {
	var out []string
	for _, m := range members {
		out = append(out, m.Name)
	}
	return out
}

// clockOf is how much a member's clock is ahead of the machine's, to the second.
func clockOf(ctx context.Context, m *cluster.Member) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.Ops+"/healthz", nil)
	if err != nil {
		return 0, err
	}
	resp, err := m.Client().Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, fmt.Errorf("clock of %s: %w", m.Name, err)
	}
	return time.Until(date), nil
}
