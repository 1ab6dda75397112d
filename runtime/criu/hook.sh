#!/bin/sh
# CRIU's action script. At the actions in $CKPT_HOOKS it asks the ckpt process that started all this and waits for
# its word; what that says is our exit status. The pipes are that process's own, opened through /proc: when it is
# gone they are gone, we fail, and CRIU undoes what it did. A dump's tasks resume; a restore's are killed.
case " $CKPT_HOOKS " in *" $CRTOOLS_SCRIPT_ACTION "*) ;; *) exit 0 ;; esac
echo "$CRTOOLS_SCRIPT_ACTION ${CRTOOLS_INIT_PID:-0}" >"/proc/$CKPT_PID/fd/$CKPT_ASK" || exit 1
read -r verdict <"/proc/$CKPT_PID/fd/$CKPT_ANSWER" || exit 1
exit "$verdict"
