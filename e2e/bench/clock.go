package main

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// cpu is the CPU time that a process has used, in the kernel too, of all its threads.
// On loopback the work of a packet's way counts for whom it interrupts.
func cpu(pid int) (time.Duration, error) {
	// clock_getcpuclockid(3) is this sum; 2 names the scheduler's exact clock.
	clock := int32(^pid<<3 | 2)
	if pid == os.Getpid() {
		clock = unix.CLOCK_PROCESS_CPUTIME_ID
	}
	var at unix.Timespec
	if err := unix.ClockGettime(clock, &at); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(at.Nano()), nil
}

// heap counts what a process has allocated since it began.
type heap struct {
	Mallocs uint64 `json:"mallocs"`
	Bytes   uint64 `json:"bytes"`
}

func ownHeap() heap {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return heap{Mallocs: m.Mallocs, Bytes: m.TotalAlloc}
}

func (h heap) since(before heap) heap {
	return heap{Mallocs: h.Mallocs - before.Mallocs, Bytes: h.Bytes - before.Bytes}
}

// watchOthers begins to watch the machine. others is how many cores all programs but
// this one and those that it started had since; these must have ended.
func watchOthers() (others func() (float64, error), err error) {
	start := time.Now()
	before, err := elsewhere()
	return func() (float64, error) {
		now, err := elsewhere()
		return (now - before).Seconds() / time.Since(start).Seconds(), err
	}, err
}

// elsewhere is the CPU time of the machine without that of this process and its
// children, from the first line of /proc/stat.
func elsewhere() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	var user, nice, system, idle, wait, irq, softirq, steal int64
	if _, err := fmt.Sscanf(string(stat), "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &softirq, &steal); err != nil {
		return 0, fmt.Errorf("/proc/stat: %w", err)
	}
	// Linux tells all programs ticks of 10 ms.
	sum := time.Duration(user+nice+system+irq+softirq+steal) * 10 * time.Millisecond
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0, err
		}
		sum -= time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum, nil
}
