/*
 * fanotify(7): records are read and split into columns in one call, so that Python builds events without
 * parsing.
 *
 * A record is a fixed head and any number of information records, each with a type and a length. What the
 * events of one group carry depends on its flags: `kinds` says which types occurred, so that Python looks
 * only at those columns. A file system id and the file handle behind it stay together, as one opaque string:
 * open_by_handle_at takes the second half of it as it is.
 */
#include <linux/fanotify.h>
#include <stdbool.h>

#define SANDBOX_FANOTIFY_BYTES 32768
/* An event without information records is the shortest. */
#define SANDBOX_FANOTIFY_RECORDS (SANDBOX_FANOTIFY_BYTES / sizeof(struct fanotify_event_metadata))
/* A handle of no bytes is the shortest information record with a handle. */
#define SANDBOX_FANOTIFY_HANDLES                                                                             \
    (SANDBOX_FANOTIFY_BYTES / (sizeof(struct fanotify_event_info_fid) + sizeof(struct file_handle)))

struct sandbox_fanotify_batch {
    uint64_t mask[SANDBOX_FANOTIFY_RECORDS];
    int32_t fd[SANDBOX_FANOTIFY_RECORDS];
    int32_t pid[SANDBOX_FANOTIFY_RECORDS];
    int32_t pidfd[SANDBOX_FANOTIFY_RECORDS];
    /* Numbers of handles, -1 for none: DFID, DFID_NAME or OLD_DFID_NAME; NEW_DFID_NAME; FID. */
    int32_t directory[SANDBOX_FANOTIFY_RECORDS];
    int32_t new_directory[SANDBOX_FANOTIFY_RECORDS];
    int32_t object[SANDBOX_FANOTIFY_RECORDS];
    uint64_t offset[SANDBOX_FANOTIFY_RECORDS]; /* RANGE */
    uint64_t count[SANDBOX_FANOTIFY_RECORDS];
    uint64_t mount[SANDBOX_FANOTIFY_RECORDS]; /* MNT; 0: none */
    int32_t error[SANDBOX_FANOTIFY_RECORDS];  /* ERROR */
    uint32_t error_count[SANDBOX_FANOTIFY_RECORDS];
    /* Handle i is handle_bytes from the end of handle i - 1 to handle_end[i]. */
    uint32_t handle_end[SANDBOX_FANOTIFY_HANDLES];
    uint32_t kinds;   /* 1 << type of every information record met */
    uint32_t named;   /* how many events have a name */
    uint32_t handles; /* how many handles there are */
    uint32_t differ;  /* FANOTIFY_DIFFER_*: columns in which not all rows are the same */
    size_t names_size;
    size_t new_names_size;
    /* One name for each event, empty for none, each with a NUL behind it. */
    char names[SANDBOX_FANOTIFY_BYTES];
    char new_names[SANDBOX_FANOTIFY_BYTES];
    char handle_bytes[SANDBOX_FANOTIFY_BYTES];
    _Alignas(8) char records[SANDBOX_FANOTIFY_BYTES];
};

#define FANOTIFY_DIFFER_FD 1U
#define FANOTIFY_DIFFER_PID 2U
#define FANOTIFY_DIFFER_DIRECTORY 4U
#define FANOTIFY_DIFFER_MASK 8U

/* The raw calls: the C library's header and the kernel's cannot be included together everywhere. */
static int sandbox_fanotify_init(unsigned int flags, unsigned int event_flags)
{
    return (int)syscall(SYS_fanotify_init, flags, event_flags);
}

static int sandbox_fanotify_mark(int fd, unsigned int flags, uint64_t mask, int dirfd, const char *path)
{
    return (int)syscall(SYS_fanotify_mark, fd, flags, mask, dirfd, path);
}

/* Take over a handle with its file system id; the same one twice in a row is kept once. */
static int32_t fanotify_handle(struct sandbox_fanotify_batch *batch, const char *from, uint32_t size)
{
    uint32_t number = batch->handles;
    uint32_t end = number ? batch->handle_end[number - 1] : 0;
    uint32_t begin = number > 1 ? batch->handle_end[number - 2] : 0;

    if (number && end - begin == size && !memcmp(batch->handle_bytes + begin, from, size))
        return (int32_t)number - 1;
    memcpy(batch->handle_bytes + end, from, size);
    batch->handle_end[number] = end + size;
    batch->handles = number + 1;
    return (int32_t)number;
}

/*
 * A kind of record is met for the first time: empty its columns, so that a row without one says so. What does
 * not occur costs nothing.
 */
static void fanotify_meet(struct sandbox_fanotify_batch *batch, unsigned int type)
{
    if (batch->kinds & 1U << type)
        return;
    batch->kinds |= 1U << type;
    switch (type) {
    case FAN_EVENT_INFO_TYPE_FID:
        memset(batch->object, 0xff, sizeof(batch->object));
        break;
    case FAN_EVENT_INFO_TYPE_NEW_DFID_NAME:
        memset(batch->new_directory, 0xff, sizeof(batch->new_directory));
        break;
    case FAN_EVENT_INFO_TYPE_PIDFD:
        for (size_t row = 0; row < SANDBOX_FANOTIFY_RECORDS; row++)
            batch->pidfd[row] = FAN_NOPIDFD;
        break;
    case FAN_EVENT_INFO_TYPE_ERROR:
        memset(batch->error, 0, sizeof(batch->error));
        memset(batch->error_count, 0, sizeof(batch->error_count));
        break;
    case FAN_EVENT_INFO_TYPE_RANGE:
        memset(batch->offset, 0, sizeof(batch->offset));
        memset(batch->count, 0, sizeof(batch->count));
        break;
    case FAN_EVENT_INFO_TYPE_MNT:
        memset(batch->mount, 0, sizeof(batch->mount));
        break;
    }
}

/* Split one information record of `size` bytes into row `row`; false when it is cut short. */
static bool fanotify_info(struct sandbox_fanotify_batch *batch, int row, const char *info, uint32_t size)
{
    struct fanotify_event_info_header header;
    struct file_handle *handle = NULL;
    const uint32_t fixed = sizeof(struct fanotify_event_info_fid);
    uint32_t handle_size, length;
    unsigned int handle_bytes;

    memcpy(&header, info, sizeof(header));
    if (header.info_type < 32)
        fanotify_meet(batch, header.info_type);
    switch (header.info_type) {
    case FAN_EVENT_INFO_TYPE_FID:
    case FAN_EVENT_INFO_TYPE_DFID:
    case FAN_EVENT_INFO_TYPE_DFID_NAME:
    case FAN_EVENT_INFO_TYPE_OLD_DFID_NAME:
    case FAN_EVENT_INFO_TYPE_NEW_DFID_NAME: {
        if (size < fixed + sizeof(*handle))
            return false;
        memcpy(&handle_bytes, info + fixed, sizeof(handle_bytes));
        if (handle_bytes > size - fixed - sizeof(*handle))
            return false;
        handle_size = (uint32_t)sizeof(__kernel_fsid_t) + (uint32_t)sizeof(*handle) + handle_bytes;
        int32_t number = fanotify_handle(batch, info + sizeof(header), handle_size);
        const char *name = info + sizeof(header) + handle_size;
        length = size - (uint32_t)sizeof(header) - handle_size;
        if (header.info_type == FAN_EVENT_INFO_TYPE_FID) {
            batch->object[row] = number;
        } else if (header.info_type == FAN_EVENT_INFO_TYPE_NEW_DFID_NAME) {
            length = (uint32_t)strnlen(name, length);
            batch->new_directory[row] = number;
            memcpy(batch->new_names + batch->new_names_size, name, length);
            batch->new_names_size += length;
        } else {
            batch->directory[row] = number;
            /* Only what has a name in its type has one: behind a DFID is padding. */
            if (header.info_type == FAN_EVENT_INFO_TYPE_DFID)
                break;
            length = (uint32_t)strnlen(name, length);
            batch->named += length != 0;
            memcpy(batch->names + batch->names_size, name, length);
            batch->names_size += length;
        }
        break;
    }
    case FAN_EVENT_INFO_TYPE_PIDFD:
        if (size < sizeof(struct fanotify_event_info_pidfd))
            return false;
        memcpy(&batch->pidfd[row], info + sizeof(header), 4);
        break;
    case FAN_EVENT_INFO_TYPE_ERROR:
        if (size < sizeof(struct fanotify_event_info_error))
            return false;
        memcpy(&batch->error[row], info + sizeof(header), 4);
        memcpy(&batch->error_count[row], info + sizeof(header) + 4, 4);
        break;
    case FAN_EVENT_INFO_TYPE_RANGE:
        if (size < 24)
            return false;
        memcpy(&batch->offset[row], info + 8, 8);
        memcpy(&batch->count[row], info + 16, 8);
        break;
    case FAN_EVENT_INFO_TYPE_MNT:
        if (size < sizeof(header) + 8)
            return false;
        /* The header is padded to the alignment of the id that follows. */
        memcpy(&batch->mount[row], info + size - 8, 8);
        break;
    default: /* newer than this code: passed over, as the man page asks for */
        break;
    }
    return true;
}

/* Split `size` bytes of records; return their number, or -1 with EBADMSG when one is cut short or malformed.
 */
static int sandbox_fanotify_split(struct sandbox_fanotify_batch *batch, size_t size)
{
    const char *records = batch->records;
    size_t at = 0;
    int row = 0;

    batch->kinds = batch->named = batch->handles = batch->differ = 0;
    batch->names_size = batch->new_names_size = 0;
    if (size > sizeof(batch->records)) {
        errno = EMSGSIZE;
        return -1;
    }
    while (at < size) {
        struct fanotify_event_metadata event;

        if (size - at < sizeof(event))
            goto cut;
        memcpy(&event, records + at, sizeof(event));
        if (event.vers != FANOTIFY_METADATA_VERSION || event.event_len > size - at ||
            event.metadata_len < sizeof(event) || event.event_len < event.metadata_len)
            goto cut;
        batch->mask[row] = event.mask;
        batch->fd[row] = event.fd;
        batch->pid[row] = event.pid;
        batch->directory[row] = -1;
        for (uint32_t inner = event.metadata_len; inner < event.event_len;) {
            struct fanotify_event_info_header header;

            if (event.event_len - inner < sizeof(header))
                goto cut;
            memcpy(&header, records + at + inner, sizeof(header));
            if (header.len < sizeof(header) || header.len > event.event_len - inner ||
                !fanotify_info(batch, row, records + at + inner, header.len))
                goto cut;
            inner += header.len;
        }
        batch->differ |= (event.fd != batch->fd[0] ? FANOTIFY_DIFFER_FD : 0) |
                         (event.pid != batch->pid[0] ? FANOTIFY_DIFFER_PID : 0) |
                         (batch->directory[row] != batch->directory[0] ? FANOTIFY_DIFFER_DIRECTORY : 0) |
                         (event.mask != batch->mask[0] ? FANOTIFY_DIFFER_MASK : 0);
        batch->names[batch->names_size++] = '\0';
        batch->new_names[batch->new_names_size++] = '\0';
        row++;
        at += event.event_len;
    }
    return row;
cut:
    errno = EBADMSG;
    return -1;
}

/* Read at most `size` bytes once and split them; the number of records, or -1 with the errno of read(2). */
static int sandbox_fanotify_read(int fd, struct sandbox_fanotify_batch *batch, size_t size)
{
    ssize_t got = read(fd, batch->records, size < sizeof(batch->records) ? size : sizeof(batch->records));

    return got < 0 ? -1 : sandbox_fanotify_split(batch, (size_t)got);
}

/* Answer a permission event; with `audit` the answer carries the rule that decided. */
static int sandbox_fanotify_respond(int fd, int32_t event_fd, uint32_t response, bool audit, uint32_t rule,
                                    uint32_t subject_trust, uint32_t object_trust)
{
    struct {
        struct fanotify_response answer;
        struct sandbox_fanotify_audit_rule rule;
    } message = {
        .answer = {.fd = event_fd, .response = response},
        .rule = {.type = 1, .len = sizeof(message.rule)},
    };
    ssize_t written;

    message.rule.rule_number = rule;
    message.rule.subj_trust = subject_trust;
    message.rule.obj_trust = object_trust;
    written = write(fd, &message, audit ? sizeof(message) : sizeof(message.answer));
    return written < 0 ? -1 : 0;
}
