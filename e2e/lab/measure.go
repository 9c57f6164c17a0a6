package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"sync"
	"time"
)

// sampling is how often processes are looked at. One that is killed keeps what it had
// when it was last seen.
const sampling = 200 * time.Millisecond

// meter adds up what processes use of the machine, also of those that end meanwhile.
// It is safe for concurrent use.
type meter struct {
	pids func() []int // of the processes that run now

	mu      sync.Mutex
	began   map[procKey]time.Duration // CPU at the start; none for what started later
	cpu     map[procKey]time.Duration
	rss     map[procKey]int64
	machine time.Duration // CPU of the machine at the start
	own     time.Duration // CPU of this process at the start
}

// procKey tells processes apart that had the same ID one after another.
type procKey struct {
	pid     int
	started uint64 // in ticks since the machine's start
}

// newMeter returns a meter of the processes that pids lists each time.
func newMeter(pids func() []int) *meter {
	return &meter{
		pids: pids, began: map[procKey]time.Duration{}, cpu: map[procKey]time.Duration{}, rss: map[procKey]int64{},
	}
}

// start takes what was used until now as zero.
func (m *meter) start() error {
	machine, err := readMachine()
	if err != nil {
		return err
	}
	_, own, err := readProcess(os.Getpid())
	if err != nil {
		return err
	}
	m.sample()
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(m.began, m.cpu)
	m.machine, m.own = machine, own
	return nil
}

// run samples until ctx ends.
func (m *meter) run(ctx context.Context) {
	tick := time.NewTicker(sampling)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.sample()
		}
	}
}

// sample looks at every process once. What cannot be read has ended.
func (m *meter) sample() {
	for _, pid := range m.pids() {
		key, cpu, err := readProcess(pid)
		if err != nil {
			continue
		}
		rss, err := readPeak(pid)
		m.mu.Lock()
		m.cpu[key] = cpu
		if err == nil {
			m.rss[key] = max(m.rss[key], rss)
		}
		m.mu.Unlock()
	}
}

// usage is what was used since start.
type usage struct {
	cpu    time.Duration // of Damselfly's processes
	others time.Duration // of all other programs but this one
	rss    int64         // the most memory that one process had
}

func (m *meter) read() (usage, error) {
	m.sample()
	machine, err := readMachine()
	if err != nil {
		return usage{}, err
	}
	_, own, err := readProcess(os.Getpid())
	if err != nil {
		return usage{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var u usage
	for k, d := range m.cpu {
		u.cpu += d - m.began[k]
	}
	for _, rss := range m.rss {
		u.rss = max(u.rss, rss)
	}
	u.others = max(0, machine-m.machine-u.cpu-(own-m.own))
	return u, nil
}

// userHz is the unit of times in /proc: USER_HZ, the same on every Linux machine that
// Go runs on.
const userHz = 10 * time.Millisecond

var errStat = errors.New("not in the form that proc(5) describes")

// readProcess returns the CPU time that a process has used.
func readProcess(pid int) (procKey, time.Duration, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procKey{}, 0, err
	}
	return parseStat(pid, content)
}

// parseStat reads utime, stime and starttime: fields 14, 15 and 22 of proc(5).
func parseStat(pid int, content []byte) (procKey, time.Duration, error) {
	// The program's name may have spaces and brackets; fields are counted behind it.
	end := bytes.LastIndexByte(content, ')')
	fields := bytes.Fields(content[end+1:])
	if end < 0 || len(fields) < 20 {
		return procKey{}, 0, fmt.Errorf("/proc/%d/stat: %w", pid, errStat)
	}
	var n [3]uint64
	for i, field := range []int{14, 15, 22} {
		var err error
		if n[i], err = strconv.ParseUint(string(fields[field-3]), 10, 64); err != nil {
			return procKey{}, 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
	}
	return procKey{pid, n[2]}, time.Duration(n[0]+n[1]) * userHz, nil
}

// readPeak returns the most memory that a process has had.
func readPeak(pid int) (int64, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parsePeak(content)
}

func parsePeak(status []byte) (int64, error) {
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			kib, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte("kB")))), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errStat
}

func readMachine() (time.Duration, error) {
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseMachine(content)
}

// parseMachine adds up the time that the machine's CPUs were not idle, from the first
// line of /proc/stat. Interrupts are in it: processes' own times have most of them too.
func parseMachine(content []byte) (time.Duration, error) {
	line, _, _ := bytes.Cut(content, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 9 || string(fields[0]) != "cpu" {
		return 0, fmt.Errorf("/proc/stat: %w", errStat)
	}
	var sum uint64
	for _, i := range []int{1, 2, 3, 6, 7, 8} { // user, nice, system, irq, softirq, steal
		n, err := strconv.ParseUint(string(fields[i]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		sum += n
	}
	return time.Duration(sum) * userHz, nil
}
