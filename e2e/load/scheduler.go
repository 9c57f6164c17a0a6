package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// scheduler is the process that is measured.
type scheduler struct {
	address, ops string
	dir, program string
	pid          int
	stop         func() error
	ended        <-chan struct{}
}

// startScheduler starts a scheduler whose state is in dir and waits until it
// serves. The caller calls stop.
func startScheduler(ctx context.Context, program, dir string, cfg Config) (*scheduler, error) {
	address, err := process.FreeAddr()
	if err != nil {
		return nil, err
	}
	ops, err := process.FreeAddr()
	if err != nil {
		return nil, err
	}
	args := []string{"serve", "--state-dir", filepath.Join(dir, "scheduler"), "--listen", address, "--ops-listen", ops, "--log-level", cfg.LogLevel}
	if cfg.Trace != "" {
		args = append(args, "--trace", cfg.Trace)
	}
	if cfg.Profile != "" {
		args = append(args, "--ops-pprof")
	}
	log, err := os.OpenFile(filepath.Join(dir, "scheduler.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	if cfg.Procs > 0 {
		cmd.Env = append(cmd.Env, "GOMAXPROCS="+strconv.Itoa(cfg.Procs))
	}
	// A group of its own: Ctrl-C at a terminal reaches the load program alone, which
	// ends it; should that die, the kernel does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread() // Pdeathsig is about the thread
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // stop looks at how it ended
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start scheduler: %w", err)
	}
	s := &scheduler{address: address, ops: ops, dir: dir, program: program, pid: cmd.Process.Pid, ended: ended}
	s.stop = func() error { return end(cmd, ended) }
	if err := s.ready(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// end asks the process to end, and kills it where it does not.
func end(cmd *exec.Cmd, ended <-chan struct{}) error {
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-ended:
	case <-time.After(15 * time.Second):
		_ = cmd.Process.Kill()
		<-ended
		return errors.New("the scheduler did not end within 15 s of SIGTERM")
	}
	if !cmd.ProcessState.Success() {
		return fmt.Errorf("the scheduler ended with %v", cmd.ProcessState)
	}
	return nil
}

func (s *scheduler) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	check, tick := process.Answers("http://"+s.ops+"/readyz"), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-s.ended:
			return fmt.Errorf("the scheduler ended before it was ready:\n%s", s.log())
		case <-ctx.Done():
			return fmt.Errorf("the scheduler was not ready in time: %w\n%s", err, s.log())
		case <-tick.C:
		}
	}
}

func (s *scheduler) log() string { return process.Tail(filepath.Join(s.dir, "scheduler.log"), 30) }

// token makes a join token by the scheduler's command line.
func (s *scheduler) token(ctx context.Context, role string, uses int) (string, error) {
	out, err := process.Run(ctx, process.Spec{
		Name: "token", Path: s.program, Dir: s.dir,
		Args: []string{"token", "create", "--state-dir", filepath.Join(s.dir, "scheduler"), "--role", role, "--uses", strconv.Itoa(uses)},
	})
	return strings.TrimSpace(out), err
}

// get asks the operations server.
func (s *scheduler) get(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.ops+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return resp.Body, nil
}

// metrics sums each counter and gauge of /metrics over its labels, under its name,
// and under name{value} for each value of its first label.
func (s *scheduler) metrics(ctx context.Context) (map[string]float64, error) {
	body, err := s.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(body)
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			v := value(m)
			out[name] += v
			if len(m.GetLabel()) > 0 {
				out[name+"{"+m.GetLabel()[0].GetValue()+"}"] += v
			}
		}
	}
	return out, nil
}

func value(m *dto.Metric) float64 {
	if h := m.GetHistogram(); h != nil {
		return h.GetSampleSum()
	}
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}

// profile writes a CPU profile of the given time to a file.
func (s *scheduler) profile(ctx context.Context, file string, over time.Duration) error {
	body, err := s.get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", max(int(over.Seconds()), 1)))
	if err != nil {
		return err
	}
	defer body.Close()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Close())
}

// usage is what a process has used, from /proc.
type usage struct {
	cpu       time.Duration
	rss, peak int64 // bytes
}

// used reads /proc/PID/stat and status; pid 0 is this process.
func used(pid int) (usage, error) {
	dir := "/proc/self"
	if pid != 0 {
		dir = "/proc/" + strconv.Itoa(pid)
	}
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return usage{}, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // behind the name, which may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return usage{}, fmt.Errorf("%s/stat has %d fields", dir, len(fields))
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	status, err3 := os.ReadFile(dir + "/status")
	u := usage{cpu: time.Duration(user+system) * 10 * time.Millisecond} // of 100 ticks a second, as Linux says to all programs
	for line := range strings.Lines(string(status)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			u.rss = kib << 10
		}
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			u.peak = kib << 10
		}
	}
	return u, errors.Join(err1, err2, err3)
}

// busy is how long all CPUs together have worked, with what a host took away.
func busy() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(stat), "\n")
	var ticks int64
	for i, field := range strings.Fields(first) {
		if i == 0 || i == 4 || i == 5 || i > 8 { // "cpu", idle, iowait, guests
			continue
		}
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
