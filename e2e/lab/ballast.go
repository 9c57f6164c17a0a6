package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ballast is memory that the machine has at hand, and that it gives the members
// little by little as they need it to store what they pull. A virtual machine whose
// host takes back what it does not use pays for each page that it touches anew: two
// seconds of CPU a gigabyte where it was measured, more than all the rest of storing
// it, and as many members share the CPUs here as elsewhere have some of their own.
type ballast struct {
	memory []byte
	stop   chan struct{}
	done   chan struct{}
}

// newBallast takes so many bytes, half of the free memory at most.
func newBallast(bytes int64) (*ballast, error) {
	free, err := available()
	if err != nil {
		return nil, err
	}
	b := &ballast{stop: make(chan struct{}), done: make(chan struct{})}
	b.memory, err = unix.Mmap(-1, 0, int(max(min(bytes, free/2), int64(os.Getpagesize()))), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(b.memory); i += os.Getpagesize() {
		b.memory[i] = 1
	}
	return b, nil
}

// release gives the memory up evenly, over the time that the bound says.
func (b *ballast) release(over time.Duration) {
	const steps = 200
	tick := time.NewTicker(max(over/steps, time.Millisecond))
	go func() {
		defer close(b.done)
		defer tick.Stop()
		page := os.Getpagesize()
		part := (len(b.memory)/steps/page + 1) * page
		for at := 0; at < len(b.memory); at += part {
			// What cannot be given up early is when the program ends.
			_ = unix.Madvise(b.memory[at:min(at+part, len(b.memory))], unix.MADV_DONTNEED)
			select {
			case <-tick.C:
			case <-b.stop:
				return
			}
		}
	}()
}

// close gives up what is left; release must have been called.
func (b *ballast) close() error {
	close(b.stop)
	<-b.done
	return unix.Munmap(b.memory)
}

// available is the memory that programs can still get, in bytes (proc_meminfo(5)).
func available() (int64, error) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(raw), "MemAvailable:")
	n, err := strconv.ParseInt(strings.Fields(rest + " 0")[0], 10, 64)
	return n << 10, err
}
