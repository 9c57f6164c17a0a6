package config

import (
	"fmt"
	"os"

	"go.uber.org/zap"
)

// WarnExposed logs a warning where others than its owner may read the file that setting
// names, which holds a secret. It says nothing of a file that is not there, or for "".
func WarnExposed(log *zap.Logger, setting, name string) {
	if name == "" {
		return
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return
	}
	log.Warn("others than its owner may read or write a file with a secret: chmod 600 it (in Kubernetes: defaultMode: 0400)",
		zap.String("setting", setting), zap.String("file", name), zap.String("mode", fmt.Sprintf("%#o", info.Mode().Perm())))
}
