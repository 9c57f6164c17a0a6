package sim

import "time"

func wall() int64 { return time.Now().UnixNano() }
