package cluster

import (
	"log"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/time/rate"
)

// newLog is a logger for memberlist. Strangers can make it say much: few of many
// warnings are written.
func newLog(to *zap.Logger) *log.Logger {
	return log.New(&logWriter{to: to, limit: rate.NewLimiter(rate.Every(5*time.Second), 10)}, "", 0)
}

type logWriter struct {
	to    *zap.Logger
	limit *rate.Limiter
}

// Write implements io.Writer for lines such as "[WARN] memberlist: text".
func (w *logWriter) Write(line []byte) (int, error) {
	level, text, ok := strings.Cut(strings.TrimSpace(string(line)), "] ")
	if !ok {
		level, text = "", level
	}
	at := zapcore.WarnLevel
	switch level {
	case "[DEBUG":
		at = zapcore.DebugLevel
	case "[INFO":
		at = zapcore.InfoLevel
	}
	if entry := w.to.Check(at, "gossip"); entry != nil && (at < zapcore.WarnLevel || w.limit.Allow()) {
		entry.Write(zap.String("says", strings.TrimPrefix(text, "memberlist: ")))
	}
	return len(line), nil
}
